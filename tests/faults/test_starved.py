"""Ranks that hang, memory that runs out, a disk that fills, a batch that is poison, an adapter that does nothing."""

import contextlib
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest
import torch
from fault_harness import Run, assert_equal, free_port, kept, last_step, remedied, result, shipper, tail, tracked
from training_jobs import MODULES, job, rows, spec

from lora_select.data.labels.tokens import TokenRow, write_rows
from lora_select.tracking.store import SERVER_ENVIRONMENT
from lora_select.training import heartbeat as beat
from lora_select.training.job import CHECKPOINTS, LOG, read_remedies
from lora_select.training.supervisor import metrics_file
from lora_select.training.worker import batches, checkpoints
from lora_select.training.worker.loop import learning_rate

pytestmark = pytest.mark.fault
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="mounting a tmpfs or making a cgroup needs root")
MEMORY = Path("/sys/fs/cgroup/memory")


def test_a_rank_that_sleeps(reference, harmed, tmp_path, outcome):
    """SIGSTOP: every rank stands still soon, the watchdog dumps stacks and ends them, the run goes on."""
    run = harmed(patience=240)  # longer than a start takes between two heartbeats on a busy machine
    run.until_step(12)
    before = last_step(tmp_path)
    os.kill(run.ranks[1], signal.SIGSTOP)
    assert run.wait() == 0
    run.no_process_is_left()
    assert_equal(tmp_path, reference)
    assert remedied(tmp_path) == ["no progress"]
    log = (tmp_path / LOG).read_text()
    assert "stacks of the ranks follow" in log
    assert 'File "' in log.split("stacks of the ranks follow")[1].split("Current thread")[1]
    again = before - result(tmp_path).resumed_from[-1]
    outcome(f"SIGSTOP of rank 1 after step {before}", "watchdog: stacks dumped, ranks ended, restarted", again)


def test_a_collective_that_never_ends(reference, harmed, tmp_path, outcome):
    """SIGSTOP of a rank whose heartbeat goes on (written here in its stead): the watchdog is blind, the other rank's reduction times out."""
    run = harmed(patience=240)  # as above
    run.until_step(12)
    before = last_step(tmp_path)
    stopped = run.ranks[1]
    os.kill(stopped, signal.SIGSTOP)
    heartbeat = tmp_path / beat.FOLDER / "rank-1.json"

    def still_moving() -> None:
        if heartbeat.is_file() and psutil.pid_exists(stopped) and run.ranks[1] == stopped:
            os.utime(heartbeat)

    run.watched = still_moving
    assert run.wait() == 0, tail(tmp_path)
    run.no_process_is_left()
    assert_equal(tmp_path, reference)
    (remedy,) = read_remedies(tmp_path)
    assert remedy.failure == "no progress"
    assert "300000ms" in remedy.message, remedy.message  # 1.25 times the patience, in gloo's own words
    again = before - result(tmp_path).resumed_from[-1]
    text = "the other rank's collective timed out, ranks ended, restarted"
    outcome(f"a collective that waits for rank 1, stopped after step {before}", text, again)


def test_a_poisoned_batch(reference, tiny_model_folder, tmp_path, outcome):
    """The loss is NaN at one row's step: lower rate once, then a sentence that names the rows; the checkpoints are good."""
    folder = tmp_path / "run"
    base = untied(tiny_model_folder, tmp_path / "base", token=259)
    told = job(folder, base, total_steps=40, checkpoint_every=5)
    harmed_rows = rows(477)
    poison = harmed_rows[100]
    harmed_rows[100] = TokenRow(poison.row_id, (259, *poison.input_ids[1:]), poison.label_mask)
    write_rows(folder / "train.parquet", harmed_rows)
    run = Run(folder, told)
    assert run.wait() == 2
    run.no_process_is_left()
    assert remedied(folder) == ["diverged"]
    said = (folder / "flow.log").read_text()
    assert "half the learning rate did not help" in said
    assert poison.row_id in said
    step, _ = checkpoints.newest(folder / CHECKPOINTS)
    from safetensors.torch import load_file

    saved = load_file(folder / CHECKPOINTS / checkpoints.name(step) / checkpoints.PARAMETERS)
    assert all(bool(tensor.isfinite().all()) for tensor in saved.values())
    assert [s["step"] for s in metrics_file.read_metrics(folder)] == list(range(1, last_step(folder) + 1))
    (remedy,) = read_remedies(folder)
    text = f"rate halved once at the checkpoint, then stopped; the message names the rows of step {remedy.step}"
    outcome("a row whose loss is NaN", text, remedy.step - 1 - step, "nothing: all good checkpoints kept")


def untied(tiny_model_folder, folder: Path, token: int) -> Path:
    """The tiny model with a head of its own and NaN as the embedding of one token: a row that holds the token is poison."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    head = model.lm_head.weight.detach().clone()
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(head)
    shutil.copytree(tiny_model_folder, folder)
    with torch.no_grad():
        model.model.embed_tokens.weight[token] = torch.nan
    model.save_pretrained(folder)
    return folder


def test_a_poisoned_batch_that_was_read_wrong_once(tiny_model_folder, tmp_path, outcome):
    """The rows are mended after the first failure: the run goes on from the good checkpoint at half the rate and ends."""
    folder = tmp_path / "run"
    told = job(folder, untied(tiny_model_folder, tmp_path / "base", token=259), total_steps=40, checkpoint_every=5)
    good = rows(477)
    chosen = batches.rows_of_step(477, 1.0, 8, 0, 11)[0]  # a row of step 12
    harmed_rows = list(good)
    harmed_rows[chosen] = dataclasses.replace(good[chosen], input_ids=(259, *good[chosen].input_ids[1:]))
    write_rows(folder / "train.parquet", harmed_rows)
    run = Run(folder, told)
    run.until_step(11)
    write_rows(folder / "train.parquet", good)  # read once, at the start of the ranks
    assert run.wait() == 0, tail(folder)
    kept(folder)
    (remedy,) = read_remedies(folder)
    assert (remedy.failure, remedy.step) == ("diverged", 12)
    assert dict(remedy.after) == {"learning_rate": told.plan.learning_rate / 2}
    found = metrics_file.read_metrics(folder)
    assert [step["step"] for step in found] == list(range(1, 41))
    assert found[11]["learning_rate"] == pytest.approx(learning_rate(told.plan, 11) / 2)
    assert result(folder).resumed_from == (10,)
    outcome("a row whose loss is NaN at step 12, mended later", "rate halved, went on from step 10 and ended", 1)


def test_an_adapter_that_does_nothing(tiny_model_folder, tmp_path, outcome):
    """alpha 0: the scale is 0, no gradient reaches B, and training stops after three steps with a sentence."""
    arguments = spec().peft_arguments | {"lora_alpha": 0}
    run = Run(tmp_path, job(tmp_path, tiny_model_folder, adapter=spec(peft_arguments=arguments)))
    assert run.wait() == 2
    assert remedied(tmp_path) == []
    assert last_step(tmp_path) == 3
    said = (tmp_path / "flow.log").read_text()
    assert f"all {2 * len(MODULES)} tensors that started at zero are zero still" in said
    outcome("an adapter of scale 0", "stopped after 3 steps with a sentence", 0)


def test_a_rate_of_zero(tiny_model_folder, tmp_path, outcome):
    run = Run(tmp_path, job(tmp_path, tiny_model_folder, learning_rate=0.0))
    assert run.wait() == 2
    assert "the learning rate is 0: training would change nothing" in (tmp_path / "flow.log").read_text()
    assert not (tmp_path / LOG).exists()
    outcome("a rate of zero", "refused before any rank started", 0)


@pytest.fixture
def small_disk(tmp_path):
    """A tmpfs of 3 MB; a checkpoint of the test's adapter has 0.16 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@needs_root
def test_checkpoints_fill_the_disk(tiny_model_folder, small_disk, tmp_path, outcome, reference):
    """One checkpoint a step and all kept: the disk fills, only the newest is kept, and the run ends as in peace."""
    told = job(small_disk, tiny_model_folder, total_steps=40, checkpoint_every=1, keep_checkpoints=100)
    run = Run(small_disk, told)
    assert run.wait() == 0, tail(small_disk)
    run.no_process_is_left()
    assert_equal(small_disk, reference)
    assert remedied(small_disk) == ["disk full"]
    (remedy,) = read_remedies(small_disk)
    again = remedy.step - result(small_disk).resumed_from[-1]
    outcome("a tmpfs of 3 MB that checkpoints fill", "older checkpoints removed, one kept from then on", again)


def fill(file: Path) -> None:
    """Write until the disk is full."""
    with file.open("wb", buffering=0) as stream:
        while True:
            stream.write(bytes(4096))


@needs_root
def test_others_fill_the_disk(tiny_model_folder, small_disk, outcome, reference):
    """Nothing can be written: one remedy, then an error that says so; with room again the same command finishes."""
    run = Run(small_disk, job(small_disk, tiny_model_folder, total_steps=40, checkpoint_every=5))
    run.until_step(7)
    before = last_step(small_disk)
    filler = small_disk / "filler"
    with pytest.raises(OSError, match="No space left"):
        fill(filler)
    assert run.wait() == 1, tail(small_disk)
    run.no_process_is_left()
    filler.unlink()
    assert run.again().wait() == 0, tail(small_disk)
    assert_equal(small_disk, reference)
    again = before - min(result(small_disk).resumed_from)
    outcome(f"a tmpfs filled by another program after step {before}", "an error that says so; resumed with room", again)


LONG = {"num_processes": 1, "micro_batch_size": 64, "effective_batch_size": 64, "total_steps": 2, "warmup_steps": 0}
HALVED = {"micro_batch_size": 32, "gradient_accumulation_steps": 2}
MIB = 1 << 20


def long_job(folder: Path, model: Path):
    """Two steps of one micro-batch of 64 rows of 400 tokens: activations are most of the memory."""
    told = job(folder, model, **LONG)
    made = []
    for number in range(128):
        ids = tuple(4 + (number * 7 + place) % 250 for place in range(400))
        made.append(TokenRow(f"row-{number:03}", ids, (False,) * 390 + (True,) * 10))
    write_rows(folder / "train.parquet", made)
    return told


@pytest.fixture(scope="module")
def roomy(tmp_path_factory, tiny_model_folder):
    """`(folder, private MiB when loaded, at most)` of the rank with all the memory it wants."""
    folder = tmp_path_factory.mktemp("roomy")
    run = Run(folder, long_job(folder, tiny_model_folder))
    seen: dict[str, float] = {}

    def look() -> None:
        for rank in beat.read(folder):
            with contextlib.suppress(psutil.Error):
                size = psutil.Process(rank["pid"]).memory_info().data / MIB
                seen[rank["phase"]] = max(size, seen.get(rank["phase"], 0.0))

    run.watched = look
    assert run.wait() == 0, tail(folder)
    return folder, seen["loading"], seen["step"]


def assert_halved(folder: Path, wanted: Path) -> str:
    """One remedy for memory, the same losses; returns words for the table."""
    assert_equal(folder, wanted, rtol=1e-5)
    found = read_remedies(folder)
    assert [remedy.failure for remedy in found] == ["out of memory"] * len(found)
    assert dict(found[0].after) == HALVED
    kept(folder)
    return f"{'; '.join(remedy.action for remedy in found)}; the same losses"


@needs_root
@pytest.mark.skipif(not (MEMORY / "cgroup.procs").exists(), reason="needs the memory controller of cgroup v1")
def test_the_kernel_kills_for_memory(tiny_model_folder, roomy, tmp_path, outcome):
    """A memory cgroup around all processes: the kernel kills the rank, the micro-batch is halved."""
    wanted, loaded, most = roomy
    group = MEMORY / f"lora-select-{os.getpid()}"
    group.mkdir()
    # The ranks' supervisor, torchrun and the flow are in the group too: its need is measured, without page cache.
    free = run_in(group, tmp_path / "free", tiny_model_folder, None)
    limit = free - 0.25 * (most - loaded)
    try:
        run_in(group, tmp_path / "short", tiny_model_folder, limit)
    finally:
        (group / "memory.limit_in_bytes").write_text("-1")
        time.sleep(1)
        group.rmdir()
    done = assert_halved(tmp_path / "short", wanted)
    assert "the kernel killed a process for memory" in read_remedies(tmp_path / "short")[0].message
    outcome(f"a memory cgroup of {limit:.0f} MiB around a run that takes {free:.0f}", done, 0)


def run_in(group: Path, folder: Path, model: Path, limit: float | None) -> float:
    """Run in a cgroup that is limited once the rank has loaded; returns the most MiB that its processes held."""
    told = long_job(folder, model)
    run = Run(folder, told, ["sh", "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "sh"])
    seen = [0.0]

    def look() -> None:
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        seen.append(int(stat["total_rss"]) / MIB)

    if limit:
        (group / "memory.limit_in_bytes").write_text(str(int(limit * MIB)))
    run.watched = look
    assert run.wait() == 0, tail(folder)
    run.no_process_is_left()
    return max(seen)


def test_an_allocation_fails(tiny_model_folder, roomy, tmp_path, outcome):
    """RLIMIT_DATA, inherited by the rank: an allocation fails, the micro-batch is halved."""
    wanted, loaded, most = roomy
    limit = most - 0.25 * (most - loaded)
    run = Run(tmp_path, long_job(tmp_path, tiny_model_folder), ["prlimit", f"--data={int(limit * MIB)}"])
    assert run.wait() == 0, tail(tmp_path)
    run.no_process_is_left()
    outcome(f"RLIMIT_DATA of {limit:.0f} MiB on ranks that take {most:.0f}", assert_halved(tmp_path, wanted), 0)


def mlflow_server(folder: Path, port: int) -> "subprocess.Popen[bytes]":
    """MLflow's own server on a SQLite file, once it answers."""
    line = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{folder}/server.db"]
    line += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(line, env={**os.environ, **SERVER_ENVIRONMENT}, stdout=log, stderr=log, cwd=folder)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/version", timeout=2):
            return process
        time.sleep(0.3)
    raise AssertionError((folder / "server.log").read_text()[-2000:])


def kill_server(process: "subprocess.Popen[bytes]") -> None:
    """SIGKILL of the server and its workers."""
    with contextlib.suppress(psutil.Error):
        below = psutil.Process(process.pid).children(recursive=True)
        for one in [psutil.Process(process.pid), *below]:
            one.kill()
    process.wait(20)


def test_tracking_goes_away(reference, harmed, tmp_path, outcome):
    """MLflow's server is killed in mid-run and comes back later: the run does not notice, no step is lost or sent twice."""
    port = free_port()
    server = mlflow_server(tmp_path, port)
    try:
        points = tracked(tmp_path, f"http://127.0.0.1:{port}")
        run = harmed()
        run.until_step(8)
        kill_server(server)
        assert run.wait() == 0, tail(tmp_path)
        server = mlflow_server(tmp_path, port)
        assert remedied(tmp_path) == []
        assert_equal(tmp_path, reference)
        held = points()
        assert shipper(tmp_path)() == 0
        assert points() == list(range(1, 41))
        assert len(held) < 40
    finally:
        kill_server(server)
    outcome(f"MLflow's server killed after step 8 (it had {len(held)} points)", "went on; the rest was sent later", 0)
