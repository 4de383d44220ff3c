"""Stages that look at what the user brought: rows, base model, profile."""

from collections.abc import Mapping
from typing import Any

from prefect import task

from lora_select import models
from lora_select.data import intake as intake_library
from lora_select.data import profile as profile_library
from lora_select.records import BaseModel, Dataset, DatasetProfile
from tasks.stage import Context, Stage
from tasks.store import StageRef


@task(name="base-model")
def resolve_model(source: str, revision: str | None) -> BaseModel:
    """Find, download or dequantise the base model; a second call costs a second."""
    return models.resolve(source, revision)


def _intake(context: Context, *, source_digests: list[str], options: Mapping[str, Any]) -> Dataset:
    del source_digests  # in the key only: they stand for the bytes behind the sources
    return intake_library.intake(folder=context.folder, **options)


def _profile(
    context: Context, *, dataset: StageRef, base: BaseModel, max_length: int, base_loss_rows: int, device: str
) -> DatasetProfile:
    return profile_library.profile(
        context.load(dataset, Dataset),
        context.folder_of(dataset),
        base,
        max_length=max_length,
        base_loss_rows=base_loss_rows,
        dtype="float32",
        device=device,
        folder=context.folder,
        progress=context.report,
    )


intake = Stage("intake", Dataset, _intake)
profile = Stage("profile", DatasetProfile, _profile, retries=1)
