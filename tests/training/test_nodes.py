"""Two nodes as two agents: each starts its own torchrun, they meet at one address, and the result is that of one node."""

import contextlib
import json
import os
import signal
import subprocess
import sys

import psutil
import pytest
import torch
from fault_harness import Run, assert_equal, free_port, tail
from training_jobs import job

from lora_select.errors import InputError
from lora_select.training.job import LAUNCH, node_file, read_job, write_job
from lora_select.training.supervisor import agent, launch
from lora_select.training.supervisor import metrics_file as show
from lora_select.training.supervisor.supervise import command


@contextlib.contextmanager
def started_agent(folder, *prefix):
    """The agent of the second node, started as a person would."""
    line = [*prefix, sys.executable, "-m", "lora_select.cli.main", "node", str(folder), "--number", "1"]
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_two_nodes_give_the_result_of_one(reference, tiny_model_folder, tmp_path, monkeypatch):
    monkeypatch.setenv(launch.RENDEZVOUS, f"127.0.0.1:{free_port()}")
    with started_agent(tmp_path):
        adapter = launch.train(job(tmp_path, tiny_model_folder, nodes=2), tmp_path)
        supervisors = [json.loads((tmp_path / node_file(LAUNCH, n)).read_text())["supervisor"] for n in (0, 1)]
    assert adapter.num_processes == 2
    assert supervisors[0] != supervisors[1]
    found, wanted = ([step["loss"] for step in show.read_metrics(folder)] for folder in (tmp_path, reference[0]))
    assert len(found) == 60
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.fault
@pytest.mark.slow
def test_a_lost_node_is_joined_again(tiny_model_folder, tmp_path, monkeypatch):
    """SIGKILL of the other node's rank: both nodes start again from the last checkpoint."""
    folder = tmp_path / "two"
    told = job(folder, tiny_model_folder, nodes=2, total_steps=60, checkpoint_every=5)
    monkeypatch.setenv(launch.RENDEZVOUS, f"127.0.0.1:{free_port()}")
    killed = []

    def kill(step, _total, _text):
        if step >= 7 and not killed:
            noted = json.loads((folder / node_file(LAUNCH, 1)).read_text())["processes"]
            for pid, _ in noted:
                if "lora_select.training.worker.main" in " ".join(psutil.Process(pid).cmdline()[-3:]):
                    killed.append(pid)
            os.kill(max(killed), signal.SIGKILL)

    with started_agent(folder):
        adapter = launch.train(told, folder, progress=kill)
    assert killed
    assert [remedy.failure for remedy in adapter.remedies] == ["rank lost"]
    assert adapter.resumed_from[0] >= 5
    assert [step["step"] for step in show.read_metrics(folder)] == list(range(1, 61))


@pytest.fixture
def namespaces():
    """Two network namespaces that see each other through one cable and nothing else; their prefixes for a command."""
    names = [f"lora{os.getpid()}{end}" for end in "ab"]
    ip = ["ip", "link", "add", names[0], "type", "veth", "peer", "name", names[1]]
    subprocess.run(ip, check=True)
    for number, name in enumerate(names, start=1):
        inside = ["ip", "-n", name]
        subprocess.run(["ip", "netns", "add", name], check=True)
        subprocess.run(["ip", "link", "set", name, "netns", name], check=True)
        subprocess.run([*inside, "addr", "add", f"10.99.0.{number}/24", "dev", name], check=True)
        for device in (name, "lo"):
            subprocess.run([*inside, "link", "set", device, "up"], check=True)
    yield [["ip", "netns", "exec", name] for name in names]
    for name in names:
        subprocess.run(["ip", "netns", "del", name], check=True)


@pytest.mark.fault
@pytest.mark.skipif(os.getuid() != 0, reason="making network namespaces needs root")
def test_two_network_namespaces_give_the_result_of_one_node(
    reference, namespaces, tiny_model_folder, tmp_path, monkeypatch
):
    monkeypatch.setenv(launch.RENDEZVOUS, "10.99.0.1:29400")
    head, other = namespaces
    with started_agent(tmp_path, *other):
        run = Run(tmp_path, job(tmp_path, tiny_model_folder, nodes=2), head)
        assert run.wait() == 0, tail(tmp_path)
    assert_equal(tmp_path, reference[0])
    hosts = [json.loads((tmp_path / node_file(LAUNCH, n)).read_text())["supervisor"] for n in (0, 1)]
    assert hosts[0] != hosts[1]


def test_torchrun_is_told_where_and_which(tmp_path):
    told = job(tmp_path, tmp_path, nodes=2, num_processes=8)
    file = write_job(tmp_path, told)
    assert "--standalone" in command(file, job(tmp_path, tmp_path), 0)
    line = " ".join(command(file, read_job(file).__class__(**(vars(told) | {"rendezvous": "127.0.0.1:29400"})), 1))
    assert "--nnodes 2" in line
    assert "--rdzv-endpoint 127.0.0.1:29400" in line
    assert "is_host=false" in line
    assert "--nproc-per-node 4" in line


def test_an_agent_waits_for_living_runs_that_want_it(tmp_path):
    told = job(tmp_path, tmp_path, nodes=2)
    write_job(tmp_path, type(told)(**(vars(told) | {"rendezvous": "h:1", "attempt": 3})))
    assert agent.waiting(tmp_path, 1, {}) == []
    (tmp_path / launch.HEAD).touch()
    assert agent.waiting(tmp_path, 1, {}) == [tmp_path]
    assert agent.waiting(tmp_path, 2, {}) == []
    assert agent.waiting(tmp_path, 1, {tmp_path: 3}) == []
    assert agent.waiting(tmp_path, 1, {tmp_path: 2}) == [tmp_path]
    os.utime(tmp_path / launch.HEAD, (1, 1))
    assert agent.waiting(tmp_path, 1, {}) == []


def test_bad_agents_are_told(tmp_path):
    with pytest.raises(InputError, match="first node"):
        agent.serve(tmp_path, 0)
    with pytest.raises(InputError, match="no folder"):
        agent.serve(tmp_path / "none", 1)
