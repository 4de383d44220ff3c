"""One real MLflow server, killed in mid-run and started again: nothing is lost, nothing counts twice."""

import mlflow_samples as samples
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
