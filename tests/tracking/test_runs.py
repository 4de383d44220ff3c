import mlflow_samples as samples
import pytest

from lora_select.tracking import names, runs
from lora_select.tracking.entries import Entries, of


def stored(store, run_id):
    return store.client.get_run(run_id)


def artifacts(store, run_id, path=None):
    found = []
    for item in store.client.list_artifacts(run_id, path):
        found += artifacts(store, run_id, item.path) if item.is_dir else [item.path]
    return sorted(found)


def test_a_killed_parent_is_taken_up_and_a_finished_one_is_not(store):
    first = runs.find_or_create_parent(store, "key", name="tweets", tags={names.FLOW_RUN_ID: "1"})
    assert runs.find_or_create_parent(store, "key", name="tweets", tags={names.FLOW_RUN_ID: "2"}) == first
    assert stored(store, first).data.tags[names.FLOW_RUN_ID] == "2"
    assert runs.find_or_create_parent(store, "other", name="tweets") != first
    runs.finish(store, first)
    assert runs.find_or_create_parent(store, "key", name="tweets") != first


def test_of_several_open_parents_the_oldest_wins(store):
    tags = {names.RUN_KEY: "key", names.KIND: names.PIPELINE}
    made = [store.client.create_run(store.experiment_id, start_time=t, tags=tags).info.run_id for t in (300, 100, 200)]
    assert runs.find_or_create_parent(store, "key", name="x") == made[1]


def test_a_child_is_made_once_per_token_and_shown_below_its_parent(store):
    parent = runs.find_or_create_parent(store, "key", name="tweets")
    child = runs.find_or_create_child(store, parent, "adapter", "token-1")
    runs.finish(store, child)
    assert runs.find_or_create_child(store, parent, "adapter", "token-1") == child
    assert runs.find_or_create_child(store, parent, "adapter", "token-2") != child
    assert stored(store, child).data.tags[names.PARENT_RUN_ID] == parent
    assert stored(store, child).info.run_name == "adapter"


def test_finishing_a_parent_closes_what_a_kill_left_open_below_it(store):
    parent = runs.find_or_create_parent(store, "key", name="tweets")
    child = runs.find_or_create_child(store, parent, "adapter", "token")
    runs.finish(store, parent)
    assert [stored(store, run).info.status for run in (parent, child)] == ["FINISHED", "KILLED"]


def test_every_record_reaches_a_run_and_twice_is_once(store, folder):
    run_id = runs.find_or_create_parent(store, "key", name="tweets")
    for record in samples.every_record(folder):
        entries = of(record, folder)
        runs.apply(store, run_id, entries)
        runs.apply(store, run_id, entries)
    data = stored(store, run_id).data
    assert data.params["variant"] == "lora"
    assert data.params["r"] == "8"
    assert data.metrics["eval/loss/adapted"] == 0.9
    assert len(store.client.get_metric_history(run_id, "eval/loss/adapted")) == 1
    found = artifacts(store, run_id)
    assert {f"records/{label}.json" for label in names.LABELS.values()} - set(found) == {
        f"records/{name}.json" for name in ("base_model", "race", "probe", "costs", "evidence", "seed-noise", "cost")
    }
    assert {"adapter/adapter_model.safetensors", "report/report.html", "report/figures/loss.svg"} <= set(found)
    assert {"tables/candidates.json", "tables/samples.json", "decision.md", "dataset/rejected.jsonl"} <= set(found)


def test_a_dataset_digest_longer_than_mlflow_takes_is_whole_in_the_tag(store, folder):
    run_id = runs.find_or_create_parent(store, "key", name="tweets")
    runs.apply(store, run_id, of(samples.dataset(folder), folder))
    run = stored(store, run_id)
    inputs = {each.tags[0].value: each.dataset for each in run.inputs.dataset_inputs}
    assert inputs["training"].digest == samples.SHA[:36]
    assert samples.SHA in inputs["training"].profile
    assert inputs["evaluation"].digest != inputs["training"].digest
    assert run.data.tags[names.DATASET_SHA256] == samples.SHA


def test_a_parameter_that_changed_is_kept_beside_the_first_value(store):
    run_id = runs.find_or_create_parent(store, "key", name="tweets")
    runs.apply(store, run_id, Entries(params={"r": "8"}))
    runs.apply(store, run_id, Entries(params={"r": "16", "variant": "dora"}))
    data = stored(store, run_id).data
    assert data.params == {"r": "8", "variant": "dora"}
    assert data.tags["changed.r"] == "16"


def test_more_values_than_one_batch_takes(store):
    run_id = runs.find_or_create_parent(store, "key", name="tweets")
    metrics = {f"m/{i}": float(i) for i in range(1001)}
    params = {f"p{i}": "x" for i in range(101)}
    runs.apply(store, run_id, Entries(params=params, metrics=metrics, tags={f"t{i}": "x" for i in range(101)}))
    data = stored(store, run_id).data
    assert len(data.metrics) == 1001
    assert len(data.params) == 101


def test_a_file_that_is_gone_does_not_hold_up_the_rest(store, folder):
    run_id = runs.find_or_create_parent(store, "key", name="tweets")
    runs.apply(store, run_id, Entries(files={str(folder / "gone.bin"): "x"}, texts={"here.txt": "here"}))
    assert artifacts(store, run_id) == ["here.txt"]


@pytest.mark.parametrize("length", [6000, 6001])
def test_nothing_is_cut_silently(store, length):
    from lora_select.tracking.entries import fit

    run_id = runs.find_or_create_parent(store, "key", name="tweets")
    runs.apply(store, run_id, fit(Entries(params={"modules": "x" * length}, tags={"reasons": "y" * (length + 2000)})))
    data = stored(store, run_id).data
    whole = len(data.params["modules"]) == length or artifacts(store, run_id) == [
        "long/modules.txt",
        "long/reasons.txt",
    ]
    assert whole
