import dataclasses
import json
import shutil

import mlflow_samples as samples
import pytest

from lora_select.tracking import names, outbox
from lora_select.tracking import tracker as module
from lora_select.tracking.store import prepare
from lora_select.tracking.tracker import Tracker, read_notes


class Switch:
    """A client that can be made unreachable."""

    def __init__(self, client):
        self.client, self.down = client, False

    def __getattr__(self, name):
        def call(*args, **arguments):
            if self.down:
                raise ConnectionError("connection refused")
            return getattr(self.client, name)(*args, **arguments)

        return call


@pytest.fixture
def switch(store) -> Switch:
    return Switch(store.client)


@pytest.fixture
def tracked(store, switch):
    """The store behind the switch."""
    return dataclasses.replace(store, client=switch)


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(module, "PAUSE_S", 0.0)


def start(store, folder, key="key") -> Tracker:
    return Tracker.start(store, folder, key, name="tweets", tags={names.MODEL_SHA256: samples.SHA})


def everything(tracker, folder, switch=None, down_at=()):
    """One whole pipeline run; the switch is thrown before the stages whose number is in `down_at`."""
    for number, record in enumerate(samples.every_record(folder)):
        if switch is not None:
            switch.down = number in down_at
        label = names.LABELS[type(record).__name__]
        tracker.begin(label)
        if label == "adapter":
            tracker.ship(folder / "metrics.jsonl")
        tracker.log(label, record, folder)
        tracker.end(label)
    if switch is not None:
        switch.down = len(names.LABELS) in down_at


def summary(store, parent):
    """What a person would see: parent's data, and per child its stage, status and data."""
    run = store.client.get_run(parent)
    children = store.client.search_runs([store.experiment_id], f"tags.`{names.PARENT_RUN_ID}` = '{parent}'")
    assert len({child.data.tags[names.STAGE] for child in children}) == len(children), "a stage has two runs"
    seen = {}
    for each in [run, *children]:
        curve = [metric.step for metric in store.client.get_metric_history(each.info.run_id, names.TRAIN_LOSS)]
        label = each.data.tags.get(names.STAGE, "parent")
        seen[label] = (each.info.status, each.data.params, each.data.metrics, sorted(curve))
    return seen


@pytest.fixture(scope="module")
def undisturbed(template, tmp_path_factory):
    """The summary of a run during which nothing went wrong."""
    folder = tmp_path_factory.mktemp("undisturbed")
    store = prepare(f"sqlite:///{shutil.copy(template, folder / 'mlflow.db')}", "test")
    tracker = start(store, folder)
    everything(tracker, folder)
    assert tracker.finish() == 0
    return summary(store, tracker.parent)


def test_a_whole_run(undisturbed):
    assert set(undisturbed) == {"parent", *names.LABELS.values()} - {
        "base_model",
        "race",
        "probe",
        "costs",
        "evidence",
        "seed-noise",
        "cost",
    }
    assert {status for status, *_ in undisturbed.values()} == {"FINISHED"}
    _, params, metrics, curve = undisturbed["parent"]
    assert params["variant"] == "lora"
    assert metrics["eval/loss/adapted"] == 0.9
    assert curve == undisturbed["adapter"][3] == list(range(1, 61))


@pytest.mark.parametrize("down_at", [{5}, {9, 11}, set(range(12))], ids=str)
def test_an_outage_changes_nothing_in_the_end(undisturbed, tracked, switch, folder, down_at):
    tracker = start(tracked, folder)
    everything(tracker, folder, switch, down_at)
    left = tracker.finish()
    assert (left > 0) == switch.down
    assert tracker.degraded
    switch.down = False
    again = Tracker(tracked, folder, tracker.parent)  # as the next process does
    assert again.flush() == 0
    assert summary(tracked, tracker.parent) == undisturbed
    assert not list(folder.glob("refused.jsonl"))


def test_a_run_that_was_degraded_says_so(tracked, switch, folder):
    tracker = start(tracked, folder)
    switch.down = True
    tracker.log("decision", samples.decision(), reused=True)
    switch.down = False
    assert tracker.finish() == 0
    assert tracked.client.get_run(tracker.parent).data.tags[names.TRACKING_DEGRADED] == "true"


def test_what_one_process_could_not_send_the_next_one_does(tracked, switch, folder):
    tracker = start(tracked, folder)
    switch.down = True
    tracker.begin("decision")
    tracker.log("decision", samples.decision())
    tracker.end("decision")
    assert tracker.finish() == 5
    switch.down = False
    second = start(tracked, folder)
    assert second.parent != tracker.parent, "the first run is closed by now"
    first = summary(tracked, tracker.parent)
    assert first["parent"][0] == first["decision"][0] == "FINISHED"
    assert first["decision"][1]["variant"] == "lora"


@pytest.mark.parametrize("kept", [0, 2, 5])
def test_a_kill_in_mid_flush_repeats_nothing(tracked, switch, folder, kept):
    tracker = start(tracked, folder)
    switch.down = True
    tracker.begin("decision")
    tracker.log("decision", samples.decision())
    tracker.end("decision")
    tracker.finish()
    waiting = (folder / "outbox.jsonl").read_text()
    switch.down = False
    assert tracker.flush() == 0
    (folder / "outbox.jsonl").write_text("".join(waiting.splitlines(keepends=True)[kept:]) + '{"torn')
    (folder / "tracking.json").write_text(json.dumps({**read_notes(folder), "stages": {}}))
    again = Tracker(tracked, folder, tracker.parent)
    assert again.flush() == 0
    assert summary(tracked, tracker.parent)["decision"][0] == "FINISHED"


def test_a_killed_flow_goes_on_in_the_same_runs(store, folder):
    first = start(store, folder)
    first.begin("profile")
    first.log("profile", samples.profile(folder), folder)
    first.end("profile")
    first.begin("adapter")
    samples.steps(folder / "metrics.jsonl", range(1, 21))
    first.ship(folder / "metrics.jsonl")  # and here it is killed
    second = start(store, folder)
    assert second.parent == first.parent
    second.log("profile", samples.profile(folder), folder, reused=True)
    second.begin("adapter")
    assert second.run_id("adapter") == first.run_id("adapter")
    record = samples.adapter(folder)
    second.log("adapter", record, folder)
    second.end("adapter")
    second.finish()
    seen = summary(store, second.parent)
    assert set(seen) == {"parent", "profile", "adapter"}
    assert seen["adapter"][3] == seen["parent"][3] == list(range(1, 61))
    assert {status for status, *_ in seen.values()} == {"FINISHED"}


def test_killed_after_the_record_was_written_and_before_it_was_logged(store, folder):
    first = start(store, folder)
    first.begin("adapter")
    record = samples.adapter(folder)
    second = start(store, folder)
    second.log("adapter", record, folder, reused=True)
    second.finish()
    seen = summary(store, second.parent)
    assert seen["adapter"][0] == "FINISHED"
    assert seen["adapter"][3] == list(range(1, 61))
    assert store.client.list_artifacts(second.run_id("adapter"), "adapter")


def test_a_reused_stage_makes_no_child_and_names_the_run_that_did_the_work(store, folder):
    first = start(store, folder)
    everything(first, folder)
    first.finish()
    second = start(store, folder)
    for record in samples.every_record(folder):
        second.log(names.LABELS[type(record).__name__], record, folder, reused=True)
    second.finish()
    assert second.parent != first.parent
    before, after = summary(store, first.parent), summary(store, second.parent)
    assert set(after) == {"parent"}
    assert after["parent"] == before["parent"]
    tags = store.client.get_run(second.parent).data.tags
    said = json.loads(tags[names.STAGES])["adapter"]
    assert said == {"state": "reused", "run_id": first.run_id("adapter")}
    assert second.run_id("adapter") == first.run_id("adapter")


def test_a_stage_that_is_tried_again_gets_a_run_per_try(store, folder):
    tracker = start(store, folder)
    tracker.begin("adapter")
    tracker.end("adapter", "FAILED")
    failed = tracker.run_id("adapter")
    tracker.begin("adapter")
    tracker.log("adapter", samples.adapter(folder), folder)
    tracker.end("adapter")
    assert store.client.get_run(failed).info.status == "FAILED"
    assert store.client.get_run(tracker.run_id("adapter")).info.status == "FINISHED"


def test_a_rival_is_a_row_of_its_own_and_never_mixes_with_the_parent(store, folder, tmp_path):
    rival_folder = tmp_path / "rival"
    tracker = start(store, folder)
    tracker.begin("adapter")
    tracker.log("adapter", samples.adapter(folder, "rslora", 16), folder)
    tracker.end("adapter")
    tracker.log("decision", samples.decision("rslora", 16), reused=True)
    tracker.begin("adapter-plain-lora")
    tracker.ship(_curve(rival_folder), "adapter-plain-lora")
    tracker.log("adapter-plain-lora", samples.adapter(rival_folder, "lora", 8, count=90), rival_folder)
    tracker.end("adapter-plain-lora")
    tracker.begin("evaluation")
    tracker.log("evaluation", samples.evaluation(folder, 0.8, rival_loss=1.1), folder)
    tracker.end("evaluation")
    tracker.finish()
    seen = summary(store, tracker.parent)
    parent, rival = seen["parent"], seen["adapter-plain-lora"]
    assert (parent[1]["variant"], rival[1]["variant"]) == ("rslora", "lora")
    assert (parent[2]["eval/loss/adapted"], rival[2]["eval/loss/adapted"]) == (0.8, 1.1)
    assert (len(parent[3]), len(rival[3])) == (60, 90)
    compared = store.client.search_runs([store.experiment_id], f"tags.`{names.COMPARED}` = 'true'")
    assert {run.info.run_id for run in compared} == {tracker.parent, tracker.run_id("adapter-plain-lora")}


def _curve(folder):
    folder.mkdir(exist_ok=True)
    samples.steps(folder / "metrics.jsonl", range(1, 31))
    return folder / "metrics.jsonl"


def test_what_mlflow_refuses_is_kept_and_does_not_hold_up_the_rest(store, folder):
    tracker = start(store, folder)
    tracker.begin("decision")
    store.client.delete_run(tracker.run_id("decision"))
    tracker.log("decision", samples.decision())
    tracker.end("decision")
    assert tracker.finish() == 0
    assert store.client.get_run(tracker.parent).data.params["variant"] == "lora"
    refused = outbox.read(folder / "refused.jsonl")
    assert {operation["kind"] for operation in refused} <= {"entries", "end"}
    assert refused[0]["stage"] == "decision"


def test_a_long_outage_is_asked_about_rarely(tracked, switch, folder, monkeypatch):
    monkeypatch.setattr(module, "PAUSE_S", 1000.0)
    tracker = start(tracked, folder)
    samples.steps(folder / "metrics.jsonl", range(1, 5))
    switch.down = True
    assert tracker.ship(folder / "metrics.jsonl") == 1
    switch.down = False
    assert tracker.ship(folder / "metrics.jsonl") == 1, "still within the pause"


def test_links(store, folder):
    tracker = start(store, folder)
    assert f"/#/experiments/{store.experiment_id}/runs/{tracker.parent}?" in tracker.link
    assert "viewStateShareKey=lora-select-comparison" in tracker.view_link
    assert tracker.parent in tracker.compare_link(["b"])
