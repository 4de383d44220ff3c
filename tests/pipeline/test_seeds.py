"""The seed noise that a user measured: its record, and where the gate takes it from."""

import dataclasses
import json

import books
import mlflow_samples as samples
import pytest
from moved_adapters import moved

from lora_select import models, records
from lora_select.audit import run_entries
from lora_select.config import PromotionConfig
from lora_select.data.intake import intake
from lora_select.data.profile import profile
from lora_select.errors import InputError, WorldError
from lora_select.pipeline import history, workspace
from lora_select.pipeline.stage import Place
from lora_select.pipeline.stages import judge
from lora_select.tracking.entries import of


def finished(root, name, key, make):
    folder = workspace.folder_of(root, name, key)
    folder.mkdir(parents=True)
    workspace.write(folder, make(folder))
    ref = workspace.finished(root, name, key)
    assert ref is not None
    return ref


@pytest.fixture
def measured(tmp_path, tiny_model_folder):
    """A run in which three adapters of a tiny model were measured: their weights are random, and so are their losses."""
    root, rows = tmp_path / "runs", tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"q{n}", "completion": str(n)}) + "\n" for n in range(30)))
    base = models.resolve(str(tiny_model_folder), cache=tmp_path / "cache")

    def adapter(folder, seed):
        made = samples.adapter(folder, r=8 + seed)
        model = moved(tiny_model_folder)
        for parameter in model.parameters():
            parameter.data *= 1 + 0.05 * seed * parameter.requires_grad
        model.save_pretrained(folder / "adapter")
        files = tuple(records.file_ref(folder / file.path, folder) for file in made.files)
        return dataclasses.replace(made, files=files, digest=f"{seed}" * 64)

    dataset = finished(
        root, "dataset", "d", lambda folder: intake(source=str(rows), name="d", folder=folder, eval_fraction=0.4)
    )
    known = records.read(records.Dataset, workspace.stage_folder(root, dataset) / "record.json")
    options = {"max_length": 64, "base_loss_rows": 2, "dtype": "float32", "device": "cpu"}
    made = finished(
        root,
        "profile",
        "p",
        lambda folder: profile(known, workspace.stage_folder(root, dataset), base, folder=folder, **options),
    )
    adapters = {str(seed): finished(root, "train", f"s{seed}", lambda f, s=seed: adapter(f, s)) for seed in range(3)}
    outcome = judge.noise(
        Place(root), adapters=adapters, dataset=dataset, profile=made, base=base, run="r0", device="cpu", quantize=None
    )
    workspace.view(root, "r0", outcome.ref, "seed-noise")
    return root, outcome


def test_each_seed_is_measured_on_the_same_rows(measured):
    root, outcome = measured
    found, place = history.seed_noise(root / "r0")
    assert found == outcome.record
    assert place.record == outcome.ref.digest
    assert (found.seeds, len(set(found.losses)), found.adapters[1]) == ((0, 1, 2), 3, "1" * 64)
    assert of(found, outcome.folder).metrics["seed_noise"] == found.asked
    rows = json.loads((outcome.folder / found.rows_file.path).read_text())
    assert sum(rows["2"]) / sum(rows["labels"]) == pytest.approx(found.losses[2])
    assert found.interval[0] < found.ratio < found.asked


def test_what_was_not_measured_or_was_changed_is_not_used(measured):
    root, outcome = measured
    with pytest.raises(InputError, match="none was measured"):
        history.seed_noise(root / "r9")
    (outcome.folder / "seed-rows.json").write_text("{}")
    with pytest.raises(WorldError, match="seed-rows.json"):
        history.seed_noise(root / "r0")


def test_the_gate_takes_it_and_everyone_is_told(measured, store):
    root, outcome = measured
    office = books.office(root, store)
    run = books.finished_run(root)
    policy = PromotionConfig(seed_noise=str(root / "r0"))
    sections = {"base_model": {"source": "b"}, "dataset": {"source": "d"}, "promotion": policy.model_dump()}
    records.write_text(run / "config.json", json.dumps({"name": "tweets", **sections}))
    made = books.promoted(office, run, policy).record
    assert made.verdict is not None
    assert made.verdict.seed_noise == outcome.record
    asked = judge.policy(policy, outcome.record)
    assert asked.seed_noise == outcome.record.asked
    assert made.verdict.policy_digest == records.digest(asked)
    [decision] = [entry for entry in office.ledger.entries() if entry.kind == "decision"]
    assert decision.digests["noise"] == outcome.ref.digest
    assert history._verdict_again(run) == []
    other = dataclasses.replace(outcome.record, asked=9.0)
    verdict = dataclasses.replace(made.verdict, seed_noise=other)
    records.write(run / "promotion.json", dataclasses.replace(made, verdict=verdict))
    assert "policy_digest" in "".join(history._verdict_again(run))


def test_a_plain_number_is_a_number(tmp_path, store):
    office = books.office(tmp_path / "runs", store)
    run = books.finished_run(tmp_path / "runs")
    made = books.promoted(office, run, PromotionConfig(seed_noise=0.1)).record
    assert made.verdict is not None
    assert made.verdict.seed_noise is None
    assert "noise" not in run_entries.stages(run)
    assert not any("noise" in entry.digests for entry in office.ledger.entries())


def test_a_training_that_did_not_help_is_refused_and_replays(tmp_path, store):
    root = tmp_path / "runs"
    looks = records.Validation(8, (0, 4), (1.0, 1.2), 0.1, 4, False)
    office, run = books.office(root, store), books.finished_run(root, looks=looks)
    policy = PromotionConfig()
    sections = {"base_model": {"source": "b"}, "dataset": {"source": "d"}, "promotion": policy.model_dump()}
    records.write_text(run / "config.json", json.dumps({"name": "tweets", **sections}))
    made = books.promoted(office, run, policy).record
    assert made.verdict is not None
    assert made.verdict.answer == "refuse"
    assert made.alias != "champion"
    assert history._verdict_again(run) == []
