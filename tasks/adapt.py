"""Stages that make the adapter: plan, DeepSpeed training, proof in a new process."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from lora_select.initialization import write_initialization
from lora_select.records import Adapter, AdapterSpec, BaseModel, DatasetProfile, ReloadCheck, Spectra, TrainingPlan
from lora_select.training import job
from lora_select.training import reload_check as prove_library
from lora_select.training.job import TrainingJob
from lora_select.training.machine import Machine
from lora_select.training.planning import plan as plan_library
from lora_select.training.planning.plan import planned
from lora_select.training.supervisor import launch
from tasks.stage import Context, Stage
from tasks.store import StageRef

SHIP_SECONDS = 5.0


def _plan(
    context: Context,
    *,
    profile: StageRef,
    base: BaseModel,
    spec: AdapterSpec,
    training: Mapping[str, Any],
    machine: Machine,
) -> TrainingPlan:
    known = context.load(profile, DatasetProfile)
    tokens = (context.folder_of(profile) / known.train_tokens_file.path).resolve()
    return planned(known, spec, base, machine, training, tokens, context.folder.resolve() / "measure")


def _train(
    context: Context,
    *,
    profile: StageRef,
    spectra: StageRef,
    plan: StageRef,
    base: BaseModel,
    spec: AdapterSpec,
    quantized_base: str | None = None,
) -> Adapter:
    measured, planned = context.load(profile, DatasetProfile), context.load(plan, TrainingPlan)
    plan_library.check_disk(planned, context.folder)
    tensors = context.folder_of(spectra) / context.load(spectra, Spectra).tensors.path
    factors = write_initialization(
        spec, Path(base.path), tensors, context.folder / "initial_factors.safetensors", quantized_base
    )
    told = TrainingJob(
        spec=spec,
        plan=planned,
        base_path=base.path,
        base_source=base.source,
        train_tokens=str((context.folder_of(profile) / measured.train_tokens_file.path).resolve()),
        check_tokens=str((context.folder_of(profile) / measured.eval_tokens_file.path).resolve()),
        initial_factors=str(factors.resolve()) if factors else None,
        quantized_base=quantized_base,
    )
    return launch.train(told, context.folder.resolve(), progress=_Shipping(context))


@final
class _Shipping:
    """Passes progress on and, every few seconds, sends new steps to MLflow."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._last = time.monotonic()

    def __call__(self, done: int, total: int, message: str) -> None:
        self._context.report(done, total, message)
        if time.monotonic() - self._last > SHIP_SECONDS:
            self._last = time.monotonic()
            self._context.place.tracker.ship(self._context.folder / job.METRICS, self._context.label)


def _prove(context: Context, *, adapter: StageRef, plan: StageRef, base: BaseModel) -> ReloadCheck:
    precision = context.load(plan, TrainingPlan).precision
    made = prove_library.check_reload(base, context.folder_of(adapter), precision=precision, folder=context.folder)
    prove_library.refuse_failed(made, context.load(adapter, Adapter))
    return made


plan = Stage("plan", TrainingPlan, _plan)
train = Stage("train", Adapter, _train)  # no retries: training has its own, bounded and written down
prove = Stage("prove", ReloadCheck, _prove)
