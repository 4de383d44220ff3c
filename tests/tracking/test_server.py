"""One real MLflow server, killed in mid-run and started again: nothing is lost, nothing counts twice."""

import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress

import mlflow_samples as samples
import psutil
import pytest

from lora_select.tracking import names, registry
from lora_select.tracking import tracker as module
from lora_select.tracking.store import prepare
from lora_select.tracking.tracker import Tracker

pytestmark = pytest.mark.server


def test_a_server_killed_in_mid_run(database, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PAUSE_S", 0.0)
    port = samples.free_port()
    metrics = folder / "metrics.jsonl"
    with samples.server(database, port) as address:
        store = prepare(address, "http")
        tracker = Tracker.start(store, folder, "key", name="tweets")
        tracker.begin("decision")
        tracker.log("decision", samples.decision())
        tracker.end("decision")
        tracker.begin("adapter")
        samples.steps(metrics, range(1, 21))
        assert tracker.ship(metrics) == 0

    samples.steps(metrics, range(21, 41))
    assert tracker.ship(metrics) > 0
    assert tracker.degraded
    adapter = samples.adapter(folder)
    tracker.log("adapter", adapter, folder)
    tracker.end("adapter")
    assert tracker.finish() > 0

    with samples.server(database, port):
        assert tracker.flush() == 0
        child = tracker.run_id("adapter")
        assert child is not None
        for run_id in (tracker.parent, child):
            history = store.client.get_metric_history(run_id, names.TRAIN_LOSS)
            assert [metric.step for metric in history] == list(range(1, 61))
            assert store.client.get_run(run_id).info.status == "FINISHED"
        assert store.client.get_run(tracker.parent).data.tags[names.TRACKING_DEGRADED] == "true"
        version = registry.register(store, "tweets", child, adapter, folder)
        assert registry.register(store, "tweets", child, adapter, folder) == version
        registry.set_alias(store, "tweets", version.version, names.CHAMPION)
        champion = registry.by_alias(store, "tweets")
        assert champion is not None
        got = registry.download(store, champion, tmp_path / "champion")
        assert (got / "adapter_model.safetensors").read_bytes() == (
            folder / "adapter/adapter_model.safetensors"
        ).read_bytes()


def test_serve_answers_and_an_interrupt_ends_all_of_it(database, tmp_path):
    port = samples.free_port()
    program = f"from lora_select.tracking.store import serve; serve('sqlite:///{database}', {port})"
    with (tmp_path / "serve.log").open("w") as log:
        process = subprocess.Popen([sys.executable, "-c", program], stdout=log, stderr=log, cwd=tmp_path)
    until = time.monotonic() + 120
    version = b""
    while not version and time.monotonic() < until:
        time.sleep(0.2)
        with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/version", timeout=2) as answer:
            version = answer.read()
    assert version.startswith(b"3."), (tmp_path / "serve.log").read_text()
    tree = [process.pid, *(child.pid for child in psutil.Process(process.pid).children(recursive=True))]
    process.send_signal(signal.SIGINT)
    process.wait(timeout=60)
    psutil.wait_procs([psutil.Process(pid) for pid in tree if psutil.pid_exists(pid)], timeout=20)
    assert not [pid for pid in tree if psutil.pid_exists(pid)]
    assert not list(tmp_path.glob("mlruns"))
