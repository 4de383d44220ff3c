"""Retention in the line, on a tiny model that is really trained: what is refused before, what is proven after, what is no reason to stop."""

import contextlib
import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
import training_jobs

import lora_select as ls
from lora_select import records
from lora_select.audit.verification import verify
from lora_select.cli.main import main
from lora_select.config import words
from lora_select.data.labels.tokens import read_rows
from lora_select.errors import InputError
from lora_select.export.command import export
from lora_select.pipeline import line, sequence
from lora_select.pipeline.run import opened
from lora_select.pipeline.stages import train
from lora_select.pipeline.workspace import StageRef
from lora_select.records import Adapter, Dataset, ReferenceText, ReloadCheck, Retention, TasksOverTime
from lora_select.records.retention import IN_BASE, KEPT_MOMENTS, TASKS_IN_BASE
from lora_select.retention import references
from lora_select.retention.forms import config_of
from lora_select.retention.moments import InputSums, Moments, save
from lora_select.training.planning.plan import replay_rows
from lora_select.training.worker.batches import rows_of

pytestmark = pytest.mark.timeout(900)
SETTINGS = {
    "microbatches": 4,
    "microbatch_size": 2,
    "sketch_size": 16,
    "base_loss_rows": 4,
    "max_length": 64,
    "batch_size": 16,
    "epochs": 12,
    "learning_rate": 0.01,
    "num_processes": 1,
    "tracking_uri": None,
}
SMALL = ["evaluation.exact_match_rows=0", "retention.judging_units=4", "retention.tolerance=20%"]


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_model_folder):
    folder = tmp_path_factory.mktemp("line")
    rows = [{"prompt": f"say {n}", "completion": f"<b>{n % 7}</b>"} for n in range(120)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def finetuned(place, tiny_model_folder):
    def make(*overrides, model=tiny_model_folder):
        patch.setenv("LORA_SELECT_CACHE", str(place / "cache"))
        return ls.finetune(
            str(model), place / "rows.jsonl", runs_dir=str(place / "runs"), overrides=[*SMALL, *overrides], **SETTINGS
        )

    with pytest.MonkeyPatch.context() as patch:
        yield make


@pytest.fixture(scope="module")
def kept(finetuned):
    return finetuned("retention.keep_moments=true")


@contextlib.contextmanager
def planned(place, model, *overrides):
    """The run of the same settings up to its plan."""
    config = words.of(
        str(model), str(place / "rows.jsonl"), SETTINGS | {"runs_dir": str(place / "runs")}, [*SMALL, *overrides]
    )
    with opened(config) as run:
        yield run, line.plan(run)[1]


def record(made, name, kind):
    return records.read(kind, made.folder / f"{name}.json")


def test_what_is_served_has_its_own_logits_and_its_own_proof(kept):
    retention = record(kept, "retention", Retention)
    trained, served = record(kept, "adapter", Adapter), record(kept, "served", Adapter)
    assert retention.decision.choice != "none"
    assert served.digest == retention.digest != trained.digest
    assert served.reference_logits.sha256 != trained.reference_logits.sha256
    proof, proven = record(kept, "proof", ReloadCheck), record(kept, "served-proof", ReloadCheck)
    assert (proof.adapter_digest, proven.adapter_digest) == (trained.digest, served.digest)
    assert proven.passed
    assert proven.max_logit_difference < 1e-4 < 0.1 * proven.function_change
    assert kept.evaluation.adapter_digest == served.digest
    assert verify(kept.folder).faults == ()


def test_what_became_of_an_earlier_task_is_measured_on_the_rows_that_its_run_kept(kept, place, tiny_model_folder):
    first = record(kept, "tasks", TasksOverTime)
    (own,) = first.tasks
    assert len(own.losses) == 2
    assert own.losses[1] < own.losses[0]
    assert own.lost is None
    assert own.losses[1] == pytest.approx(kept.evaluation.metrics["loss"].adapted, rel=0.05)
    merged = place / "as-merged"
    shutil.copytree(tiny_model_folder, merged)
    gone = dataclasses.replace(own, name="gone", rows_sha256="0" * 64, losses=(3.0, 1.0))
    earlier = TasksOverTime(("rows",), (dataclasses.replace(own, losses=(own.losses[0] + 1, own.losses[0] - 1)), gone))
    (merged / TASKS_IN_BASE).parent.mkdir()
    records.write(merged / TASKS_IN_BASE, earlier)
    with planned(place, tiny_model_folder, "retention.keep_moments=true") as (run, _):
        stages = json.loads((kept.folder / "stages.json").read_text())
        refs = {
            name: StageRef(found["stage"], found["key"], found["record"])
            for name, found in stages.items()
            if name in ("profile", "adapter", "served")
        }
        base = dataclasses.replace(run.base, path=str(merged))
        made = run.do(
            sequence.tasks, "tasks-again", base=base, name="again", device="cpu", quantize=None, **refs
        ).record
    assert made.trainings == ("rows", "again")
    known, unknown = made.tasks
    assert known.losses == (own.losses[0] + 1, own.losses[0] - 1, pytest.approx(own.losses[1]))
    assert known.lost == pytest.approx((own.losses[1] - own.losses[0] + 1) / 2)
    assert known.as_trained != known.losses[-1]
    assert unknown.losses == (3.0, 1.0, None)
    assert unknown.lost is unknown.as_trained is None


@pytest.mark.slow
def test_a_run_on_the_merged_model_keeps_what_the_run_before_it_learnt(kept, finetuned, place, tiny_model_folder):
    first = record(kept, "retention", Retention)
    assert first.moments_file is not None
    assert records.sha256_file(kept.folder / KEPT_MOMENTS) == first.moments_file.sha256
    export(kept.folder, "merged", place / "merged", rank=None, max_error=0.05, base=str(tiny_model_folder))
    assert records.sha256_file(place / "merged" / IN_BASE) == first.moments_file.sha256
    second = finetuned("retention.keep_moments=true", model=place / "merged")
    again = record(second, "retention", Retention)
    held = [record(made, "tasks", TasksOverTime) for made in (kept, second)]
    assert records.read(TasksOverTime, place / "merged" / TASKS_IN_BASE) == held[0]
    assert held[1].tasks[0].losses[:2] == held[0].tasks[0].losses
    assert "Tasks over time" in (second.folder / "report.html").read_text()
    assert "Tasks over time" not in (kept.folder / "report.html").read_text()
    assert any("earlier tasks" in note for note in again.notes)
    assert not any("earlier tasks" in note for note in first.notes)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("retention.references=[{place}/rows.jsonl]", "rows.jsonl holds .* rows of the task"),
        ("retention.judges=[{place}/none.jsonl]", "none.jsonl"),
        ("retention.earlier=[{place}/none.safetensors]", "none.safetensors does not exist"),
    ],
)
def test_text_that_cannot_be_used_is_refused_before_the_training(kept, finetuned, place, override, words):
    trainings = sorted((place / "runs/stages/train").iterdir())
    with pytest.raises(InputError, match=words):
        finetuned("training.epochs=1", override.format(place=place))
    assert sorted((place / "runs/stages/train").iterdir()) == trainings


def test_reference_text_is_read_once_for_all_runs_that_name_it(kept, place, tiny_model_folder, monkeypatch):
    text = record(kept, "references", ReferenceText)
    assert [(one.name, one.give_tokens > 0, one.judging_units) for one in text.sets] == [
        ("prose", True, 4),
        ("code", False, 4),
    ]
    assert text.later == ()
    monkeypatch.setattr(references, "refuse_unusable", lambda *_, **__: pytest.fail("read again"))
    with planned(place, tiny_model_folder, "retention.tolerance=30%") as (run, _):
        assert (run.place.root / run.key / "references.json").is_file()


@pytest.mark.slow
def test_reference_text_is_trained_on_where_it_is_asked_for(kept, place, tiny_model_folder):
    with planned(place, tiny_model_folder, "retention.replay=0.1", "training.epochs=1") as (run, made):
        trained = 120 - record(kept, "dataset", Dataset).eval_rows - made.record.validation_rows
        assert made.record.replay.rows == replay_rows(trained, 0.1) > trained / 10
        assert made.record.total_steps == -(-(trained + made.record.replay.rows) // 16)
        job = training_jobs.job(place / "job", Path(run.base.path), count=trained, validation_rows=8)
        beside = str(made.folder / made.record.replay.tokens_file.path)
        rows, held = rows_of(dataclasses.replace(job, replay_tokens=beside))
        assert (rows[trained - 8 :], len(held)) == (read_rows(Path(beside)), 8)
        again = run.do(train.with_seed, "plan-seed-7", plan=made.ref, seed=7)
        copied = again.folder / again.record.replay.tokens_file.path
        assert records.sha256_file(copied) == made.record.replay.tokens_file.sha256
    with (
        pytest.raises(InputError, match="rows.jsonl holds .* rows of the task"),
        planned(place, tiny_model_folder, "retention.replay=0.1", f"retention.references=[{place}/rows.jsonl]"),
    ):
        pass


def test_an_adapter_that_cannot_be_filtered_is_served_as_it_was_trained(kept, finetuned, place):
    other = record(kept, "retention", Retention).layers[0].name
    save(Moments({other: InputSums(torch.eye(8).double(), 8.0, 100)}, {other: other}), place / "other.safetensors")
    made = finetuned(f"retention.earlier=[{place}/other.safetensors]")
    assert not (made.folder / "retention.json").exists()
    assert made.evaluation.adapter_digest == record(made, "adapter", Adapter).digest
    assert record(made, "adapter", Adapter) == record(kept, "adapter", Adapter)


def test_a_retention_that_does_not_follow_from_its_evidence_is_a_difference(kept, tmp_path):
    assert kept.replay() == []
    folder = Path(
        shutil.copytree(kept.folder, tmp_path / "copied", ignore=shutil.ignore_patterns("adapter*", "evidence"))
    )
    told = json.loads((folder / "retention.json").read_text())
    told["decision"] = {"choice": "none", "strength": 0.0, "reasons": []}
    (folder / "retention.json").unlink()
    (folder / "retention.json").write_text(json.dumps(told))
    assert any('"none"' in line for line in ls.load(folder).replay())


def test_the_command_writes_the_least_rank_that_keeps_the_task(kept, tmp_path, capsys):
    assert main(["export", str(kept.folder), "--rank", "least", "--out", str(tmp_path / "small")]) == 0
    first, *tried = capsys.readouterr().out.splitlines()
    rank = config_of(tmp_path / "small")["r"]
    assert first == f"rank {rank} of {kept.decision.choice.r}"
    assert rank < kept.decision.choice.r
    assert tried[0].startswith(f"rank {kept.decision.choice.r // 2}: ")


@pytest.mark.parametrize(("more", "words"), [([], "no run's folder"), (["--to", "merged"], "has no rank")])
def test_what_cannot_be_narrowed_is_refused(kept, tmp_path, capsys, more, words):
    folder = str(kept.folder / "adapter")
    assert main(["export", folder, "--rank", "least", "--out", str(tmp_path / "none"), *more]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
