"""An adapter is a LoggedModel, once, linked to the run that made it and to the evaluation and its dataset."""

import dataclasses
import json
import logging
import time

import mlflow_samples as samples

from lora_select import records
from lora_select.tracking import logged_models, names, runs
from lora_select.tracking.entries import of
from lora_select.tracking.tracker import Tracker


def judged(folder):
    adapter = samples.adapter(folder)
    return adapter, dataclasses.replace(samples.evaluation(folder), adapter_digest=adapter.digest)


def whole_run(store, folder) -> Tracker:
    tracker = Tracker.start(store, folder, "key", name="tweets")
    adapter, evaluation = judged(folder)
    for label, record in (("dataset", samples.dataset(folder)), ("adapter", adapter), ("evaluation", evaluation)):
        tracker.begin(label)
        tracker.log(label, record, folder)
        tracker.end(label)
    tracker.finish()
    return tracker


def test_one_model_an_adapter_put_out_by_the_run_that_trained_it(store, folder):
    tracker = whole_run(store, folder)
    models = store.client.search_logged_models([store.experiment_id])
    assert len(models) == 1
    (model,) = models
    assert (model.model_type, str(model.status)) == ("lora-adapter", "READY")
    assert model.source_run_id == tracker.run_id("adapter")
    assert model.params["variant"] == "lora"
    assert model.tags[logged_models.SOURCE] == f"runs:/{tracker.run_id('adapter')}/adapter"
    for run_id in (tracker.parent, tracker.run_id("adapter")):
        outputs = store.client.get_run(run_id).outputs.model_outputs
        assert [(output.model_id, output.step) for output in outputs] == [(model.model_id, 60)]
    found = store.client.search_logged_models([store.experiment_id], filter_string="params.variant = 'lora'")
    assert [each.model_id for each in found] == [model.model_id]


def test_metrics_of_the_evaluation_hang_on_the_model_and_the_evaluation_dataset(store, folder):
    tracker = whole_run(store, folder)
    model = store.client.search_logged_models([store.experiment_id])[0]
    metrics = {metric.key: metric for metric in model.metrics}
    loss = metrics["eval/loss/adapted"]
    assert (loss.value, loss.dataset_name) == (0.9, "tweets eval")
    dataset = samples.dataset(folder)
    assert loss.dataset_digest == dataset.eval_file.sha256[:36]
    run = store.client.get_run(tracker.run_id("evaluation"))
    assert [item.model_id for item in run.inputs.model_inputs] == [model.model_id]
    assert [item.dataset.name for item in run.inputs.dataset_inputs] == ["tweets eval"]


def test_doing_it_again_makes_no_second_model(store, folder):
    run_id = runs.find_or_create_parent(store, "key", name="tweets")
    adapter, evaluation = judged(folder)
    entries = [of(record, folder) for record in (samples.dataset(folder), adapter, evaluation)]
    for each in (*entries, *entries):
        runs.apply(store, run_id, each)
    assert len(store.client.search_logged_models([store.experiment_id])) == 1
    run = store.client.get_run(run_id)
    assert len(run.outputs.model_outputs) == 1
    assert len(run.inputs.model_inputs) == 1
    assert len(store.client.get_metric_history(run_id, "eval/loss/adapted")) == 1
    other = samples.adapter(folder, "dora")
    runs.apply(store, run_id, of(other, folder))
    assert len(store.client.search_logged_models([store.experiment_id])) == 2


def test_each_kept_checkpoint_is_a_model_with_its_loss_on_the_rows_kept_from_training(store, folder):
    adapter = dataclasses.replace(
        samples.adapter(folder), validation=records.Validation(8, (20, 40, 60), (1.3, 1.1, 1.2), 0.05, 40, False)
    )
    for place, step, digest in (("checkpoints", 50, "5"), ("best", 40, "4"), ("best", 60, "6")):
        manifest = {"step": step, "files": {"parameters.safetensors": digest * 64}}
        samples.write(folder, f"{place}/step-{step:07d}/MANIFEST.json", json.dumps(manifest))
    tracker = Tracker.start(store, folder, "key", name="tweets")
    for label, record in (("dataset", samples.dataset(folder)), ("adapter", adapter)):
        for _ in range(2):
            tracker.begin(label)
            tracker.log(label, record, folder)
            tracker.end(label)
    tracker.finish()
    models = store.client.search_logged_models([store.experiment_id])
    kept = {int(model.params["step"]): model for model in models if model.model_type == "lora-checkpoint"}
    assert (len(models), sorted(kept)) == (3, [40, 60])  # the one of step 50 is removed when the run ends
    assert kept[40].tags[logged_models.SOURCE] == (folder.resolve() / "best" / "step-0000040").as_uri()
    assert {model.params["adapter"] for model in kept.values()} == {adapter.digest}
    train = samples.dataset(folder).digest[:36]
    said = {
        step: {(metric.value, metric.step, metric.dataset_digest) for metric in model.metrics or ()}
        for step, model in kept.items()
    }
    assert said == {40: {(1.1, 40, train)}, 60: {(1.2, 60, train)}}
    run = store.client.get_run(kept[40].source_run_id)
    assert [item.dataset.digest for item in run.inputs.dataset_inputs] == [train]
    assert sorted(output.step for output in run.outputs.model_outputs) == [40, 60, 60]


def test_an_evaluation_of_an_unknown_adapter_is_logged_all_the_same(store, folder):
    run_id = runs.find_or_create_parent(store, "key", name="tweets")
    runs.apply(store, run_id, of(samples.evaluation(folder), folder))
    assert store.client.get_run(run_id).data.metrics["eval/loss/adapted"] == 0.9


def test_datasets_have_a_schema_and_a_profile(store, folder):
    run_id = runs.find_or_create_parent(store, "key", name="tweets")
    runs.apply(store, run_id, of(samples.dataset(folder), folder))
    inputs = {item.tags[0].value: item.dataset for item in store.client.get_run(run_id).inputs.dataset_inputs}
    columns = json.loads(inputs["evaluation"].schema)["mlflow_colspec"]
    assert [(column["name"], column["required"]) for column in columns] == [
        ("row_id", True), ("messages", True), ("tools", False),
    ]  # fmt: skip
    profile = json.loads(inputs["evaluation"].profile)
    assert (profile["num_rows"], profile["rows_read"], profile["rows_rejected"]) == (80, 900, 20)


def test_the_columns_said_are_those_that_intake_writes(tmp_path):
    import pyarrow.parquet

    from lora_select.data.intake import intake
    from lora_select.tracking.record_entries import COLUMNS

    (tmp_path / "d.jsonl").write_text("".join(f'{{"prompt": "q{n}", "completion": "a{n}"}}\n' for n in range(20)))
    made = intake(source=str(tmp_path / "d.jsonl"), name="d", folder=tmp_path, eval_fraction=0.4)
    assert pyarrow.parquet.read_schema(tmp_path / made.train_file.path).names == list(COLUMNS)


def test_description_and_name_wait_out_an_outage(store, folder, monkeypatch):
    from lora_select.tracking import tracker as module

    monkeypatch.setattr(module, "PAUSE_S", 0.0)
    tracker = Tracker.start(store, folder, "key", name="tweets")

    def gone(*args, **arguments):
        raise ConnectionError("connection refused")

    with monkeypatch.context() as broken:
        for call in ("log_batch", "update_run"):
            broken.setattr(store.client, call, gone)
        tracker.describe("**Champion.** It answers better.")
        tracker.rename("tweets · lora r8 · champion")
        assert tracker.flush() == 2
    assert tracker.flush() == 0
    run = store.client.get_run(tracker.parent)
    assert run.info.run_name == "tweets · lora r8 · champion"
    assert run.data.tags[names.DESCRIPTION].startswith("**Champion.**")


def test_a_run_has_few_tags(store, folder):
    tracker = Tracker.start(store, folder, "key", name="tweets", tags={names.MODEL_SHA256: samples.SHA})
    for record in samples.every_record(folder):
        label = names.LABELS[type(record).__name__]
        tracker.begin(label)
        tracker.log(label, record, folder)
        tracker.end(label)
    tags = [name for name in store.client.get_run(tracker.parent).data.tags if not name.startswith("mlflow.")]
    assert len(tags) <= 15
    said = json.loads(store.client.get_run(tracker.parent).data.tags[names.STAGES])
    assert set(said) == {names.LABELS[type(record).__name__] for record in samples.every_record(folder)}
    assert said["adapter"] == {"state": "done", "run_id": tracker.run_id("adapter")}


def test_evidence_and_cost_reach_the_run(store, folder):
    run_id = runs.find_or_create_parent(store, "key", name="tweets")
    card, statement = (
        samples.write(folder, f"evidence/{name}", name) for name in ("README.md", "training.intoto.json")
    )
    made = records.EvidenceFiles(card, statement, None, None, None, None, samples.SHA, None, ("no ML-BOM",))
    energy = records.Energy(0.5, "estimated", "2 CPU threads of 8 W")
    price = records.Cost("measured", 1e13, 0.5, 1, 0.5, energy, 0.1, "EUR", ())
    for record in (made, price):
        runs.apply(store, run_id, of(record, folder))
    assert store.client.get_run(run_id).data.metrics["cost/kwh"] == 0.5
    assert {item.path for item in store.client.list_artifacts(run_id, "evidence")} == {
        "evidence/README.md", "evidence/training.intoto.json",
    }  # fmt: skip


def test_the_load_of_the_machine_is_sampled_beside_the_run(store, folder):
    import psutil

    from lora_select.tracking.system_metrics import watched

    run_id = runs.find_or_create_parent(store, "key", name="tweets")
    with watched(store, run_id, node="node0", seconds=0.2):
        psutil.cpu_percent(interval=1.0)
    found = store.client.get_run(run_id).data.metrics
    assert "system/node0/cpu_utilization_percentage" in found
    first = store.client.get_metric_history(run_id, "system/node0/cpu_utilization_percentage")
    with watched(store, run_id, node="node0", seconds=0.2):
        psutil.cpu_percent(interval=1.0)
    after = store.client.get_metric_history(run_id, "system/node0/cpu_utilization_percentage")
    steps = [metric.step for metric in after]
    assert len(steps) > len(first)
    assert len(set(steps)) == len(steps)
    assert store.client.get_run(run_id).info.status == "RUNNING"


def test_the_load_goes_to_the_whole_address_and_no_warning_shows_it(store, folder):
    """What a person reads of a store has its password hidden, and so leads nowhere."""
    from lora_select.tracking import system_metrics

    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    monitors = logging.getLogger("mlflow.system_metrics.system_metrics_monitor")
    monitors.addHandler(handler)
    run_id = runs.find_or_create_parent(store, "key", name="tweets")
    shown = dataclasses.replace(store, uri=f"sqlite:///{folder}/hidden.db")
    with system_metrics.watched(shown, run_id, seconds=0.2):
        time.sleep(1.0)
        monitors.warning("at http://ann:secret@host")
    monitors.removeHandler(handler)
    assert "system/cpu_utilization_percentage" in store.client.get_run(run_id).data.metrics
    assert not (folder / "hidden.db").exists()
    assert said == ["at http://ann:***@host"]


def test_a_model_names_the_version_that_it_was_registered_as(store, folder, tmp_path):
    from lora_select.tracking import registry

    tracker = whole_run(store, folder)
    model = store.client.search_logged_models([store.experiment_id])[0]
    adapter = samples.adapter(folder)
    for _ in range(2):
        version = registry.register(store, "tweets", tracker.run_id("adapter"), adapter, folder)
    said = store.client.get_logged_model(model.model_id).tags[logged_models.VERSIONS]
    assert json.loads(said) == [{"name": "tweets", "version": "1"}]
    assert registry.download(store, version, tmp_path / "back").is_dir()
