"""Small finished runs with real files, and an office with a real MLflow store."""

import dataclasses
from pathlib import Path

import mlflow_samples as samples

from lora_select import records
from lora_select.audit import run_entries
from lora_select.audit.alias import standing
from lora_select.audit.alias.champion import key_part
from lora_select.audit.alias.promotion import Candidate, Judgement, Office, promote
from lora_select.audit.books import anchor, chain, grounds
from lora_select.audit.books.ledger import in_folder
from lora_select.config import PromotionConfig
from lora_select.pipeline import workspace
from lora_select.pipeline.stage import Place
from lora_select.pipeline.stages import judge
from lora_select.tracking import registry
from lora_select.tracking.tracker import Tracker

PASSED = Judgement(True, {}, ("held-out loss beats the base model's",))
BLOCKED = Judgement(
    False, {"loss": "held-out loss does not beat the base model's"}, ("held-out loss does not beat the base model's",)
)
MODEL = "tweets"


def office(root: Path, store) -> Office:
    return Office(in_folder(root), store)


def finished_run(root: Path, key: str = "r1", variant: str = "lora", looks: records.Validation | None = None) -> Path:
    """A run's folder with stages `profile`, `adapter`, `evaluation`, as the line leaves them."""
    made = {
        "profile": samples.profile,
        "adapter": lambda folder: dataclasses.replace(samples.adapter(folder, variant), validation=looks),
    }
    for name, make in made.items():
        folder = workspace.folder_of(root, name, f"{key}{name}")
        folder.mkdir(parents=True)
        workspace.write(folder, make(folder))
    adapter = records.read(records.Adapter, workspace.folder_of(root, "adapter", f"{key}adapter") / "record.json")
    folder = workspace.folder_of(root, "evaluation", f"{key}evaluation")
    folder.mkdir(parents=True)
    workspace.write(folder, dataclasses.replace(samples.evaluation(folder), adapter_digest=adapter.digest))
    for name in (*made, "evaluation"):
        ref = workspace.finished(root, name, f"{key}{name}")
        assert ref is not None
        workspace.view(root, key, ref, name)
    run = root / key
    records.write_text(run / "config.json", '{"name": "tweets", "seed": 0}\n')
    workspace.link(root, key, workspace.folder_of(root, "adapter", f"{key}adapter") / "adapter", "adapter")
    workspace.point_latest(root, key)
    return run


def candidate(office: Office, run: Path, compared_with: str | None = None) -> Candidate:
    mlflow_run = office.store.client.create_run(office.store.experiment_id).info.run_id
    return Candidate(
        MODEL, run.name, run_entries.stages(run)["adapter"].folder, mlflow_run, grounds.digests(run), compared_with
    )


def finish(office, root, key="r1", variant="lora", judgement=PASSED, compared_with=None, **settings):
    run = finished_run(root, key, variant)
    made = promote(office, candidate(office, run, compared_with), judgement, **settings)
    run_entries.closed(run, model=MODEL)
    return run, made


def promoted(office, run, policy=PromotionConfig(), rows=None):  # noqa: B008  (frozen)
    """The promotion of a run as the line makes it: a sealed stage under a key."""
    [adapter, evaluation] = [
        workspace.finished(office.ledger.path.parent, name, f"{run.name}{name}") for name in ("adapter", "evaluation")
    ]
    tracker = Tracker(office.store, run, office.store.client.create_run(office.store.experiment_id).info.run_id)
    place = Place(office.ledger.path.parent, tracker)
    digest = records.read(records.Adapter, run_entries.stages(run)["adapter"].folder / "record.json").digest
    holder = key_part(office.store, place.root, run.name, MODEL, digest)
    told = {"model_name": MODEL, "settings": policy, "run": run.name, "key_only": {"holder": holder}}
    made = judge.promote(place, adapter=adapter, evaluation=evaluation, retention=None, rows=rows, **told)
    workspace.view(place.root, run.name, made.ref, "promotion")
    return made


def champion(office) -> str | None:
    found = registry.by_alias(office.store, MODEL)
    return found.version if found else None


def kinds(office) -> list[str]:
    return [entry.kind for entry in office.ledger.entries()]


def in_order(office):
    found = chain.check(office.ledger.path)
    assert found.faults == ()
    assert anchor.faults(office.ledger, found.entries, office.store) == []
    assert standing.unexplained(found.entries, office.store) == []
    assert standing.unfinished(found.entries) == []
