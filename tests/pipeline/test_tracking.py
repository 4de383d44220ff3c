"""What MLflow hears of a run through the line: names that tell runs apart, and the ends of stages."""

import time

import mlflow_samples as samples
import pytest

from lora_select.pipeline.observers import Tracking
from lora_select.pipeline.stage import Work
from lora_select.tracking import system_metrics
from lora_select.tracking.tracker import Tracker


@pytest.mark.parametrize("asked", [True, False])
def test_the_load_of_the_machine_is_sampled_beside_the_training_when_asked(store, tmp_path, monkeypatch, asked):
    monkeypatch.setattr(system_metrics, "SECONDS", 0.2)
    tracker = Tracker.start(store, tmp_path, "key", name="tweets")
    observer = Tracking(tracker, machine=asked)
    work = Work("train", "adapter", "k", tmp_path, True, 0, lambda: pytest.fail("no work"))
    observer.began(work)
    with observer.progress(work):
        time.sleep(1.0)
    run_id = tracker.run_id("adapter")
    assert run_id is not None
    assert ("system/cpu_utilization_percentage" in store.client.get_run(run_id).data.metrics) == asked


def test_a_run_is_called_by_dataset_choice_and_role(store, tmp_path):
    folder = tmp_path / "runs" / "key"
    folder.mkdir(parents=True)
    tracker = Tracker.start(store, folder, "key", name="tweets")
    observer = Tracking(tracker)

    def name():
        return store.client.get_run(tracker.parent).info.run_name

    def hear(label, record, *, reused=False):
        work = Work(label, label, "k", tmp_path, not reused, 0, lambda: pytest.fail("no work"))
        if not reused:
            observer.began(work)
        observer.finished(work, record, reused=reused, seconds=0.0)

    dataset, decision = samples.dataset(tmp_path), samples.decision()
    hear("dataset", dataset)
    assert name() == "tweets"
    hear("decision", decision, reused=True)
    assert name() == f"{dataset.name} · LoRA r 8"
    hear("promotion", samples.promotion(alias="champion"))
    assert name() == f"{dataset.name} · LoRA r 8 · champion"
    observer.ended(folder, "FINISHED")
    assert store.client.get_run(tracker.parent).info.status == "FINISHED"
    assert observer.left == 0
