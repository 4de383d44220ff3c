"""The whole job as one flow, top to bottom. By hand: `python -m flows.finetune --config infra/runs/quickstart.yaml`."""

import sys
from collections.abc import Mapping
from typing import Any

from prefect import flow

from flows import ending, session, settings
from flows.command import run_from_command_line
from flows.session import Run
from lora_select.config import load
from lora_select.records import Decision
from lora_select.training.machine import detect_machine
from tasks import adapt, choose, data, judge
from tasks.store import StageRef


@flow(name="finetune", flow_run_name="{config}")
def finetune(config: str, overrides: list[str] | None = None, dry_run: bool = False) -> str:
    """Profile, analyze, select, train, prove, evaluate, promote, report; return the run's folder.

    Args:
        config: a YAML file (see `lora_select.config.RunConfig`).
        overrides: any field as `section.field=value`.
        dry_run: stop after the plan: what would be chosen and trained, how long, how much memory.
    """
    with session.opened(load(config, overrides or [])) as run:
        return pipeline(run, dry_run=dry_run)


def pipeline(run: Run, *, dry_run: bool) -> str:
    """The straight line of stages."""
    config, base = run.config, run.base
    machine = detect_machine(config.training.device)
    device = machine.device
    dataset = run.do(data.intake, "dataset", **settings.intake(config))
    profile = run.do(data.profile, "profile", dataset=dataset.ref, base=base, **settings.profile(config, device))
    spectra = run.do(choose.analyze, "spectra", profile=profile.ref, base=base, **settings.analyze(config, device))
    planning = {"profile": profile.ref, "base": base, **settings.plan(config, machine)}
    constraints = settings.constraints(config, profile.record.train.rows)
    evidence = {"profile": profile.ref, "spectra": spectra.ref, "constraints": constraints}
    racing = {**evidence, "base": base, **settings.plan(config, machine)}
    race = run.do(choose.race, "race", **racing) if config.selection.race_budget else None
    decision = run.do(choose.select, "decision", **evidence, race=race.ref if race else None)
    training = {"profile": profile.ref, "spectra": spectra.ref, "base": base, **settings.train(config)}
    choice = decision.record.choice
    plan = run.do(adapt.plan, "plan", **planning, spec=choice)
    if dry_run:
        return ending.dry(run, plan.record)

    adapter = run.do(adapt.train, "adapter", **training, plan=plan.ref, spec=choice)
    proof = run.do(adapt.prove, "proof", adapter=adapter.ref, plan=plan.ref, base=base)
    rivals = train_rivals(run, planning, training, decision.record)
    evaluation = run.do(
        judge.evaluate,
        "evaluation",
        adapter=adapter.ref,
        proof=proof.ref,
        dataset=dataset.ref,
        profile=profile.ref,
        base=base,
        rivals=rivals,
        **settings.evaluate(config, device),
    )
    promotion = run.do(
        judge.promote, "promotion", adapter=adapter.ref, evaluation=evaluation.ref, **settings.promote(config)
    )
    stages = {"dataset": dataset, "profile": profile, "spectra": spectra, "decision": decision, "plan": plan}
    stages |= {"race": race} if race else {}
    stages |= {"adapter": adapter, "proof": proof, "evaluation": evaluation, "promotion": promotion}
    report = run.do(judge.report, "report", stages={name: outcome.ref for name, outcome in stages.items()}, base=base)
    return ending.full(run, adapter.folder / adapter.record.directory, report.folder, evaluation.record)


def train_rivals(
    run: Run, planning: Mapping[str, Any], training: Mapping[str, Any], decision: Decision
) -> dict[str, StageRef]:
    """Train plain LoRA too when something else was chosen, so that the choice is judged and not only believed."""
    plain = next((c for c in decision.candidates if c.key == f"lora-all-linear-r{decision.choice.r or 16}"), None)
    if not run.config.evaluation.compare_plain_lora or plain is None or decision.choice_key == plain.key:
        return {}
    plan = run.do(adapt.plan, "plan-plain-lora", **planning, spec=plain.spec)
    trained = run.do(adapt.train, "adapter-plain-lora", **training, plan=plan.ref, spec=plain.spec)
    return {"plain_lora": trained.ref}


if __name__ == "__main__":
    sys.exit(run_from_command_line(finetune, __doc__ or "", may_dry_run=True))
