"""What makes the adapter: plan, DeepSpeed training, reload in a new process. And the plan of a training elsewhere."""

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_select import records
from lora_select.config import RetentionConfig
from lora_select.data.labels.tokens import read_rows, write_rows
from lora_select.errors import InputError
from lora_select.initialization import write_initialization
from lora_select.pipeline.stage import Context, Stage
from lora_select.pipeline.workspace import StageRef
from lora_select.records import (
    Adapter,
    AdapterSpec,
    BaseModel,
    DatasetProfile,
    Evidence,
    ReferenceSource,
    ReferenceText,
    ReloadCheck,
    Replay,
    Retention,
    Spectra,
    TrainingPlan,
)
from lora_select.selection.calibration import shipped
from lora_select.selection.prediction import forecast, forecast_sentence, quarter
from lora_select.training.job import JOB, RESULT, TrainingJob
from lora_select.training.machine import Machine
from lora_select.training.planning import fit, memory
from lora_select.training.planning.plan import check_disk, kept_for_validation, make_plan, planned, replay_rows
from lora_select.training.supervisor.metrics_file import read_metrics

if TYPE_CHECKING:
    from lora_select.retention.settings import TaskRows

REPLAY = "replay_tokens.parquet"
OTHER_TRAINERS: Mapping[str, Any] = {
    "num_processes": 1,
    "nodes": 1,
    "zero_stage": 0,
    "packing": False,
    "whole_logits": True,
}
"""What a plan for another trainer fixes: one process, rows padded, all logits formed."""


def _plan(
    context: Context,
    *,
    profile: StageRef,
    base: BaseModel,
    spec: AdapterSpec,
    training: Mapping[str, Any],
    machine: Machine,
    replay: Mapping[str, Any] | None = None,
) -> TrainingPlan:
    known = context.load(profile, DatasetProfile)
    tokens = (context.folder_of(profile) / known.train_tokens_file.path).resolve()
    beside = _replay(context.folder, context.folder_of(profile), known, base, training, **replay) if replay else None
    return planned(known, spec, base, machine, training, tokens, context.folder.resolve() / "measure", beside)


def _replay(
    folder: Path,
    measured: Path,
    profile: DatasetProfile,
    base: BaseModel,
    training: Mapping[str, Any],
    *,
    share: float,
    references: Sequence[str],
) -> tuple[Replay, Path]:
    """Reference text for the training: `share` of its rows, and their token file in the plan's folder.

    Raises:
        InputError: a reference set that cannot be used, or holds the task's rows.
    """
    from lora_select import models
    from lora_select.retention.references import ReferenceSet, refuse_leaks, replayed

    trained = profile.train.trained - kept_for_validation(profile, float(training.get("validation", 0.0)))
    rows, rows_of, distinct = replayed(
        references, replay_rows(trained, share), base, models.load_tokenizer(base.path),
        seed=int(training["seed"]), longest=profile.max_length, model=lambda: models.load_model(base.path),
        cache=models.cache_folder(),
    )  # fmt: skip
    task = [
        row for file in (profile.train_tokens_file, profile.eval_tokens_file) for row in read_rows(measured / file.path)
    ]
    refuse_leaks([ReferenceSet(", ".join(references), "replayed", tuple(rows), (), ())], task)
    write_rows(folder / REPLAY, rows)
    tokens = sum(len(row.input_ids) for row in rows)
    return Replay(tokens, rows_of, distinct, records.file_ref(folder / REPLAY, folder)), folder.resolve() / REPLAY


def _with_seed(context: Context, *, plan: StageRef, seed: int) -> TrainingPlan:
    made = context.load(plan, TrainingPlan)
    if made.replay:
        shutil.copyfile(context.folder_of(plan) / made.replay.tokens_file.path, context.folder / REPLAY)
    return dataclasses.replace(made, seed=seed)


def _plan_elsewhere(
    context: Context,
    *,
    profile: StageRef,
    base: BaseModel,
    spec: AdapterSpec,
    training: Mapping[str, Any],
    machine: Machine,
    here: bool,
    replay: Mapping[str, Any] | None = None,
) -> TrainingPlan:
    """For one process of another trainer: its speed measured where `machine` is this one, its memory with all logits formed."""
    known = context.load(profile, DatasetProfile)
    tokens = (context.folder_of(profile) / known.train_tokens_file.path).resolve()
    told = {**training, **OTHER_TRAINERS}
    beside = _replay(context.folder, context.folder_of(profile), known, base, told, **replay) if replay else None
    if here:
        made = planned(known, spec, base, machine, told, tokens, context.folder.resolve() / "measure", beside)
    else:
        made = make_plan(known, spec, base, machine, told, replay=beside[0] if beside else None)
    rows = [*read_rows(tokens), *(read_rows(beside[1]) if beside else [])]
    held = dataclasses.replace(fit.setting(made, rows, training.get("quantize")), whole_logits=True)
    return dataclasses.replace(made, memory_gib=memory.estimate(base, spec, held))


def refuse_too_large(profile: DatasetProfile, base: BaseModel, machine: Machine, training: Mapping[str, Any]) -> None:
    """Stop before the spectral pass where the base does not fit with the smallest adapter.

    Raises:
        InputError: it does not; names the ways out.
    """
    smallest = AdapterSpec("lora", "", (), 1, 1, 1.0, "default", 1e-4, "LoraConfig", {}, {}, 1)
    try:
        make_plan(profile, smallest, base, machine, {**training, **OTHER_TRAINERS})
    except InputError as error:
        raise InputError(
            f"{error}. Here: a smaller `dataset.max_length` or `training.batch_size`, `base_model.quantize=nf4`, or a larger "
            f"`training.memory` than {machine.memory_gib:.1f} GiB"
        ) from error


def _train(
    context: Context,
    *,
    profile: StageRef,
    spectra: StageRef,
    plan: StageRef,
    base: BaseModel,
    spec: AdapterSpec,
    quantize: str | None = None,
) -> Adapter:
    from lora_select.training.supervisor import launch

    measured, made = context.load(profile, DatasetProfile), context.load(plan, TrainingPlan)
    check_disk(made, context.folder)
    tensors = context.folder_of(spectra) / context.load(spectra, Spectra).tensors.path
    factors = write_initialization(
        spec, Path(base.path), tensors, context.folder / "initial_factors.safetensors", quantize
    )
    job = TrainingJob(
        spec=spec,
        plan=made,
        base_path=base.path,
        base_source=base.source,
        train_tokens=str((context.folder_of(profile) / measured.train_tokens_file.path).resolve()),
        check_tokens=str((context.folder_of(profile) / measured.eval_tokens_file.path).resolve()),
        initial_factors=str(factors.resolve()) if factors else None,
        quantized_base=quantize,
        replay_tokens=str((context.folder_of(plan) / made.replay.tokens_file.path).resolve()) if made.replay else None,
    )
    folder = context.folder.resolve()
    asked: list[int] = []

    def report(step: int, steps: int, what: str) -> None:
        context.report(step, steps, what)
        if asked or step < quarter(made.total_steps):
            return
        asked.append(step)
        if found := _forecast(folder, measured, made):
            context.place.say(forecast_sentence(found, measured.base_loss))

    trained = launch.train(job, folder, progress=report)
    return dataclasses.replace(trained, forecast=_forecast(folder, measured, made))


def _forecast(folder: Path, profile: DatasetProfile, plan: TrainingPlan) -> Evidence | None:
    """What the steps so far say of the end; None where they say nothing."""
    losses = [step["loss"] for step in read_metrics(folder)]
    return forecast(profile.base_loss, losses, plan.total_steps, shipped())


def _prove(
    context: Context, *, adapter: StageRef, plan: StageRef, base: BaseModel, precision: str | None = None
) -> ReloadCheck:
    """In the plan's precision; retention gives its own, because it measures in float32."""
    from lora_select.training import reload_check

    precision = precision or context.load(plan, TrainingPlan).precision
    made = reload_check.check_reload(base, context.folder_of(adapter), precision=precision, folder=context.folder)
    reload_check.refuse_failed(made, context.load(adapter, Adapter))
    return made


def task_rows(folder: Path, profile: DatasetProfile, plan: TrainingPlan) -> "TaskRows":
    """The task's rows in three parts: the rows that the plan keeps from training choose the strength."""
    from lora_select.retention.settings import split_rows

    return split_rows(
        read_rows(folder / profile.train_tokens_file.path),
        plan.validation_rows,
        plan.seed,
        read_rows(folder / profile.eval_tokens_file.path),
    )


def _references(
    context: Context,
    *,
    plan: StageRef,
    profile: StageRef,
    base: BaseModel,
    giving: tuple[str, ...],
    judging: tuple[str, ...],
    give_tokens: int,
    judging_units: int,
) -> ReferenceText:
    from lora_select import models
    from lora_select.retention.references import SELF, Sizes, refuse_unusable

    made = context.load(plan, TrainingPlan)
    rows = task_rows(context.folder_of(profile), context.load(profile, DatasetProfile), made)
    sets = refuse_unusable(
        giving, judging, base, models.load_tokenizer(base.path), [*rows.moments, *rows.selection, *rows.evaluation],
        sizes=Sizes(give_tokens, judging_units), seed=made.seed,
    )  # fmt: skip
    return ReferenceText(
        sets=tuple(
            ReferenceSource(
                one.name, one.kind, sum(len(row.input_ids) for row in one.give), len(one.judging), one.digest, one.notes
            )
            for one in sets
        ),
        later=tuple(name for name in (*giving, *judging) if name == SELF),
    )


def _retain(
    context: Context,
    *,
    adapter: StageRef,
    plan: StageRef,
    profile: StageRef,
    base: BaseModel,
    settings: RetentionConfig,
    device: str,
    quantize: str | None,
    rivals: Mapping[str, StageRef],
) -> Retention:
    from lora_select.retention.one_adapter import retain_adapter
    from lora_select.retention.settings import beside_training

    made, known = context.load(plan, TrainingPlan), context.load(profile, DatasetProfile)
    trained = context.folder_of(adapter) / context.load(adapter, Adapter).reference_logits.path
    rows = task_rows(context.folder_of(profile), known, made)
    return retain_adapter(
        base,
        _peft_folder(context, adapter),
        rows,
        beside_training(settings.model_dump(), made, rows.moments, device=device, quantize=quantize),
        context.folder,
        others={name: _peft_folder(context, ref) for name, ref in rivals.items()},
        reference_logits=trained,
        progress=context.report,
    )


def _serve(context: Context, *, adapter: StageRef, retention: StageRef) -> Adapter:
    """The adapter that is served: what retention left of the trained one, with its own logits and the training's steps, time and last loss."""
    trained, kept = context.load(adapter, Adapter), context.load(retention, Retention)
    source, made = context.folder_of(adapter), context.folder_of(retention)
    assert kept.logits_file is not None  # `_retain` asks for them
    for place, name in ((source, trained.metrics_file.path), (source, JOB), (made, kept.logits_file.path)):
        shutil.copyfile(place / name, context.folder / name)
    shutil.copytree(made / kept.directory, context.folder / trained.directory, dirs_exist_ok=True)
    target = context.folder / trained.directory
    files = tuple(records.file_ref(file, context.folder) for file in sorted(target.iterdir()))
    weights = next(file.sha256 for file in files if file.path.endswith(".safetensors"))
    how = f"{trained.export}; {kept.decision.choice}, strength {kept.decision.strength:.3g}"
    logits = records.file_ref(context.folder / kept.logits_file.path, context.folder)
    served = dataclasses.replace(trained, files=files, digest=weights, export=how, reference_logits=logits)
    records.write(context.folder / RESULT, served)
    return served


def _peft_folder(context: Context, ref: StageRef) -> Path:
    return context.folder_of(ref) / context.load(ref, Adapter).directory


plan = Stage("plan", TrainingPlan, _plan)
with_seed = Stage("with-seed", TrainingPlan, _with_seed)
plan_elsewhere = Stage("plan-elsewhere", TrainingPlan, _plan_elsewhere)
train = Stage("train", Adapter, _train)  # no retries: training has its own, bounded and written down
prove = Stage("prove", ReloadCheck, _prove)
references = Stage("references", ReferenceText, _references)
retain = Stage("retain", Retention, _retain)
serve = Stage("serve", Adapter, _serve)
