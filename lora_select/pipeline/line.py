"""The line: from rows to a judged adapter. `analyze`, `recommend` and `finetune` are prefixes of it, in this order of steps.

rows -> profile -> (few-shot) -> spectra -> (race) -> decision -> plan -> adapter -> reload check -> evaluation -> promotion -> report
|----------- analyze -----------------|
|----------------- recommend, then a plan for another trainer -------|
|--------------------------------------------- finetune -----------------------------------------------------------------------------|
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lora_select import recipes, serving
from lora_select.address import masked
from lora_select.audit import signature
from lora_select.audit.alias.champion import key_part, rival_of
from lora_select.errors import require
from lora_select.evidence.cost import Prices, words
from lora_select.evidence.cost import planned as planned_cost
from lora_select.pipeline import prompting, retaining, sequence, source_digests, workspace
from lora_select.pipeline.outcomes import Chosen, Finetuned, Measured, Recommended
from lora_select.pipeline.run import Run
from lora_select.pipeline.stage import Outcome
from lora_select.pipeline.stages import choose, judge, prepare, train
from lora_select.pipeline.stages.change import compare, earlier_dataset
from lora_select.pipeline.stages.document import document, signed_by
from lora_select.pipeline.workspace import StageRef
from lora_select.recipes.expressible import PEFT_MAKES
from lora_select.records import (
    Adapter,
    AdapterCosts,
    AdapterSpec,
    Cost,
    Dataset,
    DatasetProfile,
    Evaluation,
    Gate,
    Promotion,
    ReloadCheck,
    TrainingPlan,
    read,
)
from lora_select.records.digests import key_of
from lora_select.report import answer
from lora_select.training.planning.plan import kept_for_validation, replay_rows
from lora_select.training.validation import most_epochs
from lora_select.training.worker.batches import total_steps

INTAKE = (
    "source",
    "format",
    "revision",
    "split",
    "eval_source",
    "eval_fraction",
    "split_seed",
    "max_train_rows",
    "max_eval_rows",
)
"""What of `dataset` says which rows are read; the rest says how they are learnt, or is the profile's."""


def analyze(run: Run) -> Measured:
    """Rows, profile, spectra.

    Raises:
        InputError: rows or model cannot be used.
    """
    return _measured(run, *_profiled(run))


def recommend(run: Run, trainers: Sequence[str] = ()) -> Recommended:
    """What to train, and what that will take in one process of another trainer.

    Args:
        run: an open run.
        trainers: names in :data:`lora_select.recipes.TOOLS` that must be able to express the choice and to read the rows.

    Raises:
        InputError: an unusable input, an adapter or rows that a trainer cannot express, or a model that does not fit; as early as it
            can be known.
    """
    config, machine = run.config, run.trainer
    if config.selection.variant is not None:
        recipes.refuse_named(config.selection.variant, trainers, config.selection.serve)
    dataset, gate, profile = _profiled(run)
    longest = max(profile.record.train.length.maximum, profile.record.eval.length.maximum)
    recipes.refuse_rows(longest, profile.record.max_length, trainers)
    train.refuse_too_large(profile.record, run.base, machine, run.training)
    chosen = _chosen(run, dataset, gate, profile)
    choice = chosen.decision.record.choice
    recipes.refuse(choice, trainers, config.selection.serve)
    # In bf16 the base less B0 A0 would be rounded, and other trainers make these starts in the base's own type.
    precision = {"precision": "fp32"} if choice.init in PEFT_MAKES and config.training.precision == "auto" else {}
    plan = run.do(
        train.plan_elsewhere,
        "plan-elsewhere",
        profile=profile.ref,
        base=run.base,
        spec=choice,
        training=run.training | precision,
        machine=machine,
        here=run.is_here,
        **retaining.replay(run),
    )
    return Recommended(chosen, plan)


def diagnose(run: Run, measured: Measured) -> AdapterCosts | None:
    """What `diagnostics` and `base_model.quantize` ask `analyze` for beyond the pass, None where nothing is; decides nothing."""
    config = run.config
    if not config.diagnostics.curvature and config.base_model.quantize is None:
        return None
    return run.do(
        prepare.costs,
        "costs",
        profile=measured.profile.ref,
        spectra=measured.spectra.ref,
        base=run.base,
        microbatches=microbatches(run, measured.profile.record),
        microbatch_size=config.analysis.microbatch_size,
        seed=config.seed,
        curvature=config.diagnostics.curvature,
        quantize=config.base_model.quantize,
    ).record


def check_installed() -> None:
    """Refuse to begin what would end at an import, where only the core is installed.

    Raises:
        InputError: names the extra.
    """
    for module in ("deepspeed", "accelerate"):
        require(module, "train", "`finetune`")
    require("matplotlib", "report", "the report of `finetune`")


def plan(run: Run) -> tuple[Chosen, Outcome[TrainingPlan]]:
    """The line up to the plan of its own training: what would be trained, how long, with how much memory.

    Raises:
        InputError: an unusable input, or a model that does not fit.
    """
    run.machine  # noqa: B018  (a GPU that is not here is refused before anything is measured)
    chosen = _chosen(run, *_profiled(run), trains=True)
    choice = chosen.decision.record.choice
    made = run.do(train.plan, "plan", **_planning(run, chosen), spec=choice)
    prices = Prices(**run.config.cost.model_dump())
    expected = planned_cost(made.record, run.base, chosen.measured.profile.record, choice.num_parameters, prices)
    run.place.say(f"expected of the training: {words(expected)}")
    retaining.references(run, chosen.measured.profile, made)
    return chosen, made


def finetune(run: Run) -> Finetuned:
    """The whole line.

    Raises:
        InputError: an unusable input, or a model that does not fit.
        WorldError: training failed and no remedy was left.
    """
    signed = signed_by()  # a key that is not there is told before anything is trained
    if run.place.tracker is not None:
        signature.ready()
    chosen, planned = plan(run)
    before = earlier_dataset(run.place, run.key, _model_name(run))
    change = run.do(compare, "change", dataset=chosen.measured.dataset.ref, earlier=before) if before else None
    adapter = trained(run, chosen, planned, "adapter")
    proof = run.do(train.prove, "proof", adapter=adapter.ref, plan=planned.ref, base=run.base)
    rivals = _rivals(run, chosen)
    retention = retaining.retained(run, chosen.measured.profile, planned, adapter, rivals)
    served, proven = retaining.served(run, planned, adapter, proof, retention)
    evaluation = _evaluated(run, chosen, served, proven, rivals)
    promotion = None
    if run.place.tracker is not None:
        promotion = run.do(
            judge.promote,
            "promotion",
            adapter=served.ref,
            evaluation=evaluation.ref,
            retention=retention.ref if retention else None,
            model_name=_model_name(run),
            settings=run.config.promotion,
            run=run.key,
            rows={"dataset": chosen.measured.dataset.ref, "gate": chosen.measured.gate.ref},
            key_only={
                "registry": masked(str(run.config.tracking.uri)),
                "holder": _registered(run, served.record, key_part),
                "sources": source_digests.of(run.sources, "noise"),
            },
        )
    measured = chosen.measured
    stages: dict[str, Outcome[Any] | None] = {
        "dataset": measured.dataset,
        "gate": measured.gate,
        "change": change,
        "profile": measured.profile,
        "few_shot": chosen.few_shot,
        "spectra": measured.spectra,
        "decision": chosen.decision,
        "plan": planned,
        "race": chosen.race,
        "adapter": adapter,
        "proof": proof,
        "retention": retention,
        "tasks": sequence.over_time(run, measured.profile, adapter, served),
        "evaluation": evaluation,
        "promotion": promotion,
    }
    known = {name: outcome.ref for name, outcome in stages.items() if outcome is not None}
    evidence = run.do(
        document,
        "evidence",
        stages=known | {"served": served.ref, "proof": proven.ref},
        base=run.base,
        name=run.config.name,
        run=run.key,
        config_sha256=key_of(run.config.digested()),
        prices=run.config.cost,
        key_only={"signed_by": signed},
    )
    report = run.do(judge.report, "report", stages=known, base=run.base, prices=run.config.cost)
    _show(run, adapter, served, report.folder / report.record.file.path)
    workspace.link(run.place.root, run.key, evidence.folder / "evidence", "evidence")
    cost = words(read(Cost, evidence.folder / "evidence" / "cost.json"))
    _describe(run, chosen, evaluation.record, promotion.record if promotion else None, cost)
    for line in serving.warnings(
        serving.read_folder(served.folder / served.record.directory), run.config.selection.serve
    ):
        run.place.say(f"serving: {line}")
    return Finetuned(chosen, planned, adapter, proof, retention, served, evaluation, promotion, report)


def _profiled(run: Run) -> tuple[Outcome[Dataset], Outcome[Gate], Outcome[DatasetProfile]]:
    config = run.config
    options = config.dataset.model_dump(include=set(INTAKE)) | {"name": config.name}
    rows = config.dataset.model_dump(include=set(prepare.ROW_OPTIONS))
    dataset = run.do(
        prepare.intake,
        "dataset",
        options=options,
        rows=rows,
        gate=config.gate,
        base=run.base,
        key_only=source_digests.of(run.sources, "train", "eval", "benchmarks"),
    )
    gate = run.do(prepare.gate, "gate", dataset=dataset.ref)
    profile = run.do(
        prepare.profile,
        "profile",
        dataset=dataset.ref,
        base=run.base,
        max_length=config.dataset.max_length,
        max_unusable=config.dataset.max_unusable,
        base_loss_rows=config.analysis.base_loss_rows,
        device=run.measuring.device,
    )
    return dataset, gate, profile


def _measured(run: Run, dataset: Outcome[Dataset], gate: Outcome[Gate], profile: Outcome[DatasetProfile]) -> Measured:
    spectra = run.do(
        prepare.spectra,
        "spectra",
        profile=profile.ref,
        base=run.base,
        device=run.measuring.device,
        seed=run.config.seed,
        microbatches=microbatches(run, profile.record),
        microbatch_size=run.config.analysis.microbatch_size,
        sketch_size=run.config.analysis.sketch_size,
        structure=run.config.analysis.structure or prepare.reads_shares(run.config.selection),
    )
    return Measured(dataset, gate, profile, spectra)


def _chosen(
    run: Run, dataset: Outcome[Dataset], gate: Outcome[Gate], profile: Outcome[DatasetProfile], *, trains: bool = False
) -> Chosen:
    examples = prompting.few_shot(run, dataset, profile, trains=trains)
    measured = _measured(run, dataset, gate, profile)
    if run.config.diagnostics.curvature:
        diagnose(run, measured)
    evidence = {
        "profile": measured.profile.ref,
        "spectra": measured.spectra.ref,
        "constraints": run.constraints(planned_steps(run, measured.profile.record)),
    }
    race = None
    if run.config.selection.race_budget:
        race = run.do(choose.race, "race", **evidence, base=run.base, training=run.training, machine=run.measuring)
    decision = run.do(choose.select, "decision", **evidence, race=race.ref if race else None)
    return Chosen(measured, examples, race, decision)


def microbatches(run: Run, profile: DatasetProfile) -> int:
    """How many microbatches the run's spectral pass reads."""
    rows = planned_steps(run, profile) * run.config.training.batch_size
    return prepare.microbatches(run.config.analysis, run.config.selection, rows, profile.train.length.mean)


def planned_steps(run: Run, profile: DatasetProfile) -> int:
    """Optimizer steps of the training that the config asks for, as its plan will count them."""
    training = run.config.training
    rows = profile.train.trained - kept_for_validation(profile, training.validation)
    rows += replay_rows(rows, run.config.retention.replay)
    return total_steps(rows, most_epochs(training.epochs), training.batch_size, training.max_steps)


def _planning(run: Run, chosen: Chosen) -> dict[str, Any]:
    return {
        "profile": chosen.measured.profile.ref,
        "base": run.base,
        "training": run.training,
        "machine": run.trainer,
    } | retaining.replay(run)


def trained(
    run: Run, chosen: Chosen, planned: Outcome[TrainingPlan], name: str, spec: AdapterSpec | None = None
) -> Outcome[Adapter]:
    """The adapter of a plan; `spec` is the decision's choice where none is given."""
    return run.do(
        train.train,
        name,
        profile=chosen.measured.profile.ref,
        spectra=chosen.measured.spectra.ref,
        plan=planned.ref,
        base=run.base,
        spec=spec or chosen.decision.record.choice,
        quantize=run.config.base_model.quantize,
    )


def _rivals(run: Run, chosen: Chosen) -> dict[str, StageRef]:
    """Train plain LoRA too when something else was chosen, so that the choice is judged and not only believed."""
    decision = chosen.decision.record
    plain = next((c for c in decision.candidates if c.key == f"lora-all-linear-r{decision.choice.r or 16}"), None)
    if not run.config.evaluation.compare_plain_lora or plain is None or decision.choice_key == plain.key:
        return {}
    planned = run.do(train.plan, "plan-plain-lora", **_planning(run, chosen), spec=plain.spec)
    return {"plain_lora": trained(run, chosen, planned, "adapter-plain-lora", plain.spec).ref}


def _evaluated(
    run: Run, chosen: Chosen, adapter: Outcome[Adapter], proof: Outcome[ReloadCheck], rivals: dict[str, StageRef]
) -> Outcome[Evaluation]:
    return run.do(
        judge.evaluate,
        "evaluation",
        adapter=adapter.ref,
        dataset=chosen.measured.dataset.ref,
        profile=chosen.measured.profile.ref,
        base=run.base,
        rivals=rivals,
        options=prompting.judging(run, run.machine.device),
        model_name=_model_name(run),
        few_shot=chosen.few_shot.ref if chosen.few_shot else None,
        key_only={
            "proof": proof.ref,  # an adapter without proof is not judged
            "rival": _registered(run, adapter.record, rival_of),
            "sources": source_digests.of(run.sources, "tasks", "metrics"),
        },
    )


def _registered(run: Run, adapter: Adapter, asked: Callable[..., str]) -> str:
    """What the registry says now, for a key: none is reused against another champion, or after what a person said. "" where there is none."""
    name = _model_name(run)
    if name is None or run.place.tracker is None:
        return ""
    return asked(run.place.tracker.store, run.place.root, run.key, name, adapter.digest)


def _model_name(run: Run) -> str | None:
    """The registered model: the config's own name unless it names one; None where there is no registry."""
    return (run.config.promotion.model_name or run.config.name) if run.place.tracker else None


def _describe(run: Run, chosen: Chosen, evaluation: Evaluation, promotion: Promotion | None, cost: str) -> None:
    """The run's description in MLflow: the answer in plain words."""
    if run.place.tracker is not None:
        dataset, decision = chosen.measured.dataset.record, chosen.decision.record
        run.place.tracker.describe(answer.description(dataset, decision, evaluation, promotion, cost))


def _show(run: Run, trained: Outcome[Adapter], served: Outcome[Adapter], report: Path) -> None:
    """Link what a person opens into the run's folder, and point `runs/latest` to it."""
    root = run.place.root
    workspace.link(root, run.key, served.folder / served.record.directory, "adapter")
    if served is not trained:
        workspace.link(root, run.key, trained.folder / trained.record.directory, "adapter-raw")
    workspace.link(root, run.key, report, "report.html")
    workspace.point_latest(root, run.key)
