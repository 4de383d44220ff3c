"""A plan, tried on a few real micro-batches, and made again with what was measured."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_select.data.tokens import read_rows
from lora_select.records import AdapterSpec, BaseModel, DatasetProfile, TrainingPlan
from lora_select.training.job import TrainingJob
from lora_select.training.planning import measure
from lora_select.training.planning.plan import Machine, make_plan


def planned(
    profile: DatasetProfile,
    spec: AdapterSpec,
    base: BaseModel,
    machine: Machine,
    training: Mapping[str, Any],
    tokens: Path,
    folder: Path,
) -> TrainingPlan:
    """Plan, measure on this machine, plan again.

    Args:
        profile: rows and tokens.
        spec: the adapter.
        base: the base model.
        machine: where training runs.
        training: the config's `training` section as a mapping, and `seed`.
        tokens: the training rows' token file.
        folder: where the measurement works.

    Raises:
        InputError: the settings contradict each other, or the model does not fit.
    """
    rows = read_rows(tokens)
    draft = make_plan(profile, spec, base, machine, training, rows)
    told = TrainingJob(
        spec, draft, base.path, base.source, str(tokens), str(tokens), quantized_base=training.get("quantize")
    )
    measured = measure.measure(told, folder)
    return make_plan(profile, spec, base, machine, training, rows, measured)
