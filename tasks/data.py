"""Stages that look at what the user brought: rows, base model, profile."""

from pathlib import Path

from prefect import task

from lora_select import models
from lora_select.data import intake as intake_library
from lora_select.data import profile as profile_library
from lora_select.records import BaseModel, Dataset, DatasetProfile
from tasks import store
from tasks.progress import Reporter
from tasks.stage import Stage
from tasks.store import StageRef


@task(name="base-model")
def resolve_model(source: str, revision: str | None) -> BaseModel:
    """Find, download or dequantise the base model; a second call costs a second."""
    return models.resolve(source, revision)


def _intake(
    folder: Path, _report: Reporter, *, name: str, options: dict[str, object], source_digest: str, seed: int
) -> Dataset:
    del source_digest  # in the cache key only: it stands for the bytes behind the source
    return intake_library.intake(name=name, seed=seed, folder=folder, **options)  # pyright: ignore[reportArgumentType]


def _profile(
    folder: Path,
    report: Reporter,
    *,
    dataset: StageRef,
    base: BaseModel,
    max_length: int,
    base_loss_rows: int,
    device: str,
) -> DatasetProfile:
    root = folder.parents[2]
    return profile_library.profile(
        store.load(root, dataset, Dataset),
        store.stage_folder(root, dataset),
        base,
        max_length=max_length,
        base_loss_rows=base_loss_rows,
        dtype="float32",
        device=device,
        folder=folder,
        progress=report,
    )


intake = Stage("intake", Dataset, _intake)
profile = Stage("profile", DatasetProfile, _profile, retries=1)
