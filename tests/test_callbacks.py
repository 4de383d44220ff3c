"""The callback in a real Trainer: what it measures, where it is logged, and that the training is the same without it."""

import json
from types import SimpleNamespace

import pytest
import torch

from lora_select import callbacks, models, records
from lora_select.callbacks import FORGETTING, RETENTION, VALIDATION, retain, table, watch
from lora_select.errors import InputError

ROWS = [
    {"messages": [{"role": "user", "content": f"say {n}"}, {"role": "assistant", "content": "yes " * 4}]}
    for n in range(6)
]
MODULES = ["q_proj", "v_proj", "up_proj", "down_proj"]


def trainer_of(folder, out, *, steps=6, dropout=0.1, **arguments):
    import peft
    from transformers import Trainer, TrainingArguments

    torch.manual_seed(0)
    tokenizer = models.load_tokenizer(str(folder))
    config = peft.LoraConfig(r=4, target_modules=MODULES, task_type="CAUSAL_LM", lora_dropout=dropout)
    model = peft.get_peft_model(models.load_model(str(folder)), config)
    rows = [{"input_ids": (ids := tokenizer("yes " * 8)["input_ids"]), "labels": list(ids)} for _ in range(24)]
    told = {"max_steps": steps, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "logging_steps": 1, "seed": 0}
    told |= {"report_to": "none", "use_cpu": True, "save_strategy": "no", "disable_tqdm": True} | arguments
    args = TrainingArguments(output_dir=str(out), **told)
    return Trainer(model=model, args=args, train_dataset=rows, eval_dataset=rows[:4], processing_class=tokenizer)


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_start_interval_and_end_are_measured_and_the_training_is_the_same(tiny_model_folder, tmp_path):
    plain = trainer_of(tiny_model_folder, tmp_path / "a")
    plain.train()
    watched = trainer_of(tiny_model_folder, tmp_path / "b")
    seen = watch(watched, validation=ROWS, every=4, reference_tokens=256)
    watched.train()
    assert losses(watched) == losses(plain)  # dropout draws the same numbers
    assert [point["step"] for point in seen.history] == [0, 4, 6]
    assert seen.history[0][FORGETTING] == 0.0
    assert seen.history[-1][VALIDATION] < seen.history[0][VALIDATION] - 0.1  # the answers are what is learnt
    assert seen.history[-1][FORGETTING] != 0.0
    logged = [entry for entry in watched.state.log_history if VALIDATION in entry]
    assert [entry["step"] for entry in logged] == [0, 4, 6]
    assert [entry[RETENTION] for entry in logged] == [point[RETENTION] for point in seen.history]


def test_what_is_measured_is_the_mean_loss_of_the_answers_tokens(tiny_model_folder, tmp_path):
    """Against a loop of one row at a time over the model as it is."""
    trainer = trainer_of(tiny_model_folder, tmp_path, steps=2)
    seen = watch(trainer, validation=ROWS, retention=[{"text": "some words"}, {"text": "other longer words"}])
    trainer.train()
    model, total, count = trainer.model.eval(), 0.0, 0
    for row in seen.validation:
        ids = torch.tensor(row.input_ids)
        with torch.no_grad():
            chances = model(input_ids=ids[None]).logits[0].log_softmax(-1)
        for place in range(1, len(ids)):
            if row.label_mask[place]:
                total -= float(chances[place - 1, ids[place]])
                count += 1
    assert seen.history[-1][VALIDATION] == pytest.approx(total / count, rel=1e-5)
    assert [point["step"] for point in seen.history] == [0, 2]


def test_without_an_interval_it_follows_the_trainers_evaluations(tiny_model_folder, tmp_path):
    trainer = trainer_of(tiny_model_folder, tmp_path, steps=4, eval_strategy="steps", eval_steps=3)
    seen = watch(trainer, validation=ROWS[:2], reference_tokens=256)
    trainer.train()
    assert [point["step"] for point in seen.history] == [0, 3, 4]


def test_it_is_logged_where_the_trainer_logs(tiny_model_folder, tmp_path, monkeypatch):
    """MLflow, by transformers' own reporter, on a store of its own."""
    from mlflow.tracking import MlflowClient

    uri = f"sqlite:///{tmp_path}/m.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "watched")
    monkeypatch.chdir(tmp_path)
    trainer = trainer_of(tiny_model_folder, tmp_path / "out", steps=3, report_to="mlflow")
    seen = watch(trainer, validation=ROWS[:2], every=2, reference_tokens=256)
    trainer.train()
    client = MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("watched").experiment_id])
    points = client.get_metric_history(run.info.run_id, VALIDATION)
    assert [(point.step, point.value) for point in sorted(points, key=lambda p: p.step)] == [
        (point["step"], point[VALIDATION]) for point in seen.history
    ]


SMALL = {"task_tokens": 400, "reference_tokens": 600, "judging_units": 4, "tolerance": "5%"}


def test_the_filter_runs_after_the_training_and_logs_its_table_where_the_trainer_logs(
    tiny_model_folder, tmp_path, monkeypatch
):
    """With the trials of a race, as one run of MLflow: reporters end their runs when the training ends."""
    from mlflow.tracking import MlflowClient

    uri = f"sqlite:///{tmp_path}/m.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "kept")
    monkeypatch.chdir(tmp_path)
    trial = SimpleNamespace(key="lora-all-linear-r16", learning_rate=1e-3, steps=5, held_out=(2.0, 4.0))
    choice = SimpleNamespace(race=SimpleNamespace(probes=[trial], labels=(1, 2)))
    task = [{"prompt": chr(100 + n % 20) * 8, "completion": "zz"} for n in range(32)]
    told = {"steps": 40, "learning_rate": 6e-3, "dropout": 0.0, "report_to": "mlflow"}
    trainer = trainer_of(tiny_model_folder, tmp_path / "out", **told)
    rows, kept = task[:24], task[24:]
    tokens = callbacks._tokens("rows", rows, trainer.processing_class, 512)
    trainer.train_dataset = [
        {
            "input_ids": list(row.input_ids),
            "labels": [token if learnt else -100 for token, learnt in zip(row.input_ids, row.label_mask, strict=True)],
        }
        for row in tokens
    ]
    told = retain(trainer, rows=rows, kept=kept, out="kept", base=str(tiny_model_folder), choice=choice, **SMALL)
    trainer.train()
    assert told.made is not None
    assert told.made == records.read(records.Retention, tmp_path / "kept" / "retention.json")
    held = {}
    for name in ("adapter", "adapter-raw"):
        model = models.with_adapter(models.load_model(str(tiny_model_folder)), tmp_path / "kept" / name)
        held[name] = model(input_ids=torch.arange(4, 20)[None]).logits
    trained = trainer.model.eval()(input_ids=torch.arange(4, 20)[None]).logits
    torch.testing.assert_close(held["adapter-raw"], trained)
    assert told.made.decision.choice != "none"
    assert float((held["adapter"] - trained).abs().max()) > 1e-3
    client = MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("kept").experiment_id])
    numbers = table(told.made)
    assert {name: run.data.metrics[name] for name in numbers} == numbers
    assert numbers["eval_retained_prose_served"] < numbers["eval_retained_prose_raw"]
    assert run.data.metrics["eval_race/lora-all-linear-r16_0.001/5_steps"] == 2.0


def test_an_adapter_that_cannot_be_filtered_is_no_reason_to_lose_the_training(tiny_model_folder, tmp_path, monkeypatch):
    from lora_select.retention import one_adapter

    def refuses(*_, **__):
        raise InputError("no rank holds it")

    monkeypatch.setattr(one_adapter, "retain_adapter", refuses)
    trainer = trainer_of(tiny_model_folder, tmp_path / "out", steps=2)
    told = retain(trainer, rows=[*ROWS, *ROWS] * 4, out=tmp_path / "kept", base=str(tiny_model_folder), **SMALL)
    with pytest.warns(UserWarning, match="no rank holds it"):
        trainer.train()
    assert (told.made, told.why) == (None, "no rank holds it")
    assert json.loads((tmp_path / "kept" / "adapter-raw" / "adapter_config.json").read_text())["r"] == 4
    assert not (tmp_path / "kept" / "adapter").exists()


def test_what_the_filter_cannot_use_is_said_before_the_training(tiny_model_folder, tmp_path):
    trainer = trainer_of(tiny_model_folder, tmp_path / "out")
    named = {"rows": ROWS, "base": str(tiny_model_folder)}
    with pytest.raises(InputError, match="needs 8 of them"):
        retain(trainer, out=tmp_path / "a", **named)
    with pytest.raises(InputError, match="does not exist|nowhere"):
        retain(trainer, out=tmp_path / "a", kept=ROWS * 2, references=["nowhere.jsonl"], **named)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(InputError, match="not empty"):
        retain(trainer, out=tmp_path / "full", **named)
    trainer.model = models.load_model(str(tiny_model_folder))
    with pytest.raises(InputError, match="no adapter of PEFT"):
        retain(trainer, out=tmp_path / "b", **named)


def test_bad_rows_and_a_trainer_without_a_tokenizer_are_sentences(tiny_model_folder, tmp_path):
    trainer = trainer_of(tiny_model_folder, tmp_path)
    with pytest.raises(InputError, match="`validation` row 1"):
        watch(trainer, validation=[ROWS[0], {"foo": 1}])
    with pytest.raises(InputError, match="row 0 has no answer within 8 of its"):
        watch(trainer, validation=ROWS, max_length=8)
    with pytest.raises(InputError, match="at least 1 step"):
        watch(trainer, validation=ROWS, every=0)
    trainer.processing_class = None
    with pytest.raises(InputError, match="processing_class"):
        watch(trainer, validation=ROWS)
    assert not any(isinstance(one, callbacks.Watch) for one in trainer.callback_handler.callbacks)
