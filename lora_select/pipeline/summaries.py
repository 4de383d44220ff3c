"""One or two lines a person reads for each finished stage."""

import functools
from typing import Any

from lora_select.data.gate.text import one_line
from lora_select.diagnostics import costs
from lora_select.evaluation import wording
from lora_select.records import (
    Adapter,
    AdapterCosts,
    Dataset,
    DatasetProfile,
    Decision,
    Evaluation,
    EvidenceFiles,
    FewShot,
    Gate,
    MetricComparison,
    Promotion,
    Race,
    ReferenceText,
    ReloadCheck,
    Report,
    Retention,
    SeedNoise,
    Spectra,
    TasksOverTime,
    TrainingPlan,
    VersionChange,
)
from lora_select.report.verdict import before_training, change, changed, role, value
from lora_select.retention.decide import summary as retained
from lora_select.selection.explanation import answer


@functools.singledispatch
def summary(record: Any) -> str:
    """The lines for `record`."""
    raise TypeError(f"no summary for {type(record).__name__}")


@summary.register
def _(record: Dataset) -> str:
    dropped = sum(item.count for item in record.rejected)
    why = ", ".join(f"{item.count} {item.reason}" for item in record.rejected)
    counts = f"{record.train_rows} train and {record.eval_rows} eval rows; {dropped} left out"
    return "\n".join([counts + (f" ({why})" if why else ""), *record.notes])


@summary.register
def _(record: Gate) -> str:
    lines = [one_line(record)]
    lines += [f"{item.sentence}: {item.command}" for item in record.findings if item.action != "fix"][:5]
    return "\n".join(lines)


@summary.register
def _(record: VersionChange) -> str:
    return f"beside the champion's rows: {record.sentence}"


@summary.register
def _(record: DatasetProfile) -> str:
    train = record.train
    lines = [
        f"{train.tokens:,} tokens, {train.label_tokens:,} of them labels; rows of {train.length.p50} (p50) to "
        f"{train.length.maximum} tokens; base loss {record.base_loss:.3f} ± {record.base_loss_se:.3f} nats/token"
    ]
    if train.rows_truncated or train.rows_without_labels:
        lines.append(
            f"{train.rows_truncated} rows cut at {record.max_length} tokens ({train.label_tokens_lost} labels lost), "
            f"{train.rows_without_labels} without a label"
        )
    return "\n".join([*lines, *(f"warning: {text}" for text in record.warnings), *record.notes])


@summary.register
def _(record: FewShot) -> str:
    return "\n".join(before_training(record))


@summary.register
def _(record: Spectra) -> str:
    ranks = [layer.signal_rank for layer in record.layers]
    return (
        f"{len(record.layers)} layers over {record.microbatches} microbatches ({record.tokens:,} tokens); signal above "
        f"noise in {sum(rank > 0 for rank in ranks)} of them, signal rank up to {max(ranks, default=0)}"
    )


@summary.register
def _(record: AdapterCosts) -> str:
    return "\n".join(costs.sentences(record))


@summary.register
def _(record: Race) -> str:
    head = (
        f"{len(record.probes)} probes of {' and '.join(map(str, record.rungs))} steps, {record.cost:.0%} of the training's tokens; "
        f"{len(record.dropped)} dropped on the way"
    )
    return "\n".join([head, *record.notes])


@summary.register
def _(record: Decision) -> str:
    size = f"{record.choice.num_parameters:,} parameters; `lora-select explain` has the evidence."
    return "\n".join([*answer(record), f"{record.choice_key}: {size}"])


@summary.register
def _(record: TrainingPlan) -> str:
    replayed = f", {record.replay.rows} of the rows reference text" if record.replay else ""
    return (
        f"{record.total_steps} steps of {record.effective_batch_size} rows{replayed} on {record.num_processes} {record.device} "
        f"rank{'s' if record.num_processes > 1 else ''}, ZeRO-{record.zero_stage}, {record.precision}; "
        f"{record.minutes.low:.1f} to {record.minutes.high:.1f} min, {record.memory_gib.expected:.1f} GiB a rank"
    )


@summary.register
def _(record: Adapter) -> str:
    _, _, kept = record.export.partition("; ")
    if kept:  # what retention made of a trained adapter
        return f"the adapter after {kept}; as it was trained it stays in adapter-raw"
    resumed = f"; resumed from step {', '.join(map(str, record.resumed_from))}" if record.resumed_from else ""
    head = (
        f"{record.steps} steps, {record.tokens:,} tokens at {record.tokens / max(record.seconds, 1e-9):,.0f} tokens/s, "
        f"last loss {record.final_loss:.3f} nats/token{resumed}"
    )
    looks = record.validation
    told = [] if looks is None else [f"on {looks.rows} rows kept from training step {looks.chosen_step} was best"]
    if looks and looks.base_was_best:
        told = [
            f"DO NOT TRAIN: on {looks.rows} rows kept from training the base model was better than the adapter at every look"
        ]
    return "\n".join(
        [head, *told, *(f"remedy: {item.failure} at step {item.step}: {item.action}" for item in record.remedies)]
    )


@summary.register
def _(record: ReloadCheck) -> str:
    if not record.passed:
        return "FAILED: " + "; ".join(record.faults)
    return (
        f"reloaded in a new process: {record.tensors} tensors, logits within {record.max_logit_difference:.1e} of the "
        f"trained model (limit {record.tolerance:.0e})"
    )


@summary.register
def _(record: ReferenceText) -> str:
    told = [
        f"{one.name} judges with {one.judging_units} pieces"
        + (f" and gives {one.give_tokens:,} tokens" if one.give_tokens else "")
        for one in record.sets
    ]
    told += [f"{name} is sampled from the base model after the training" for name in record.later]
    return "\n".join(["; ".join(told), *(f"{one.name}: {note}" for one in record.sets for note in one.notes)])


@summary.register
def _(record: Retention) -> str:
    return "\n".join([retained(record), *record.decision.reasons, *record.notes])


@summary.register
def _(record: Evaluation) -> str:
    lines = [_comparison(wording.metric(name), item) for name, item in wording.in_order(record.metrics).items()]
    for rival, metrics in record.against.items():
        loss = metrics["loss"]
        lines.append(f"against {wording.rival(rival, record.champion_version)}: {change(loss)}, {_changed(loss)}")
    lines += [
        f"merged and stored as {one.form}: loss {one.metrics['loss'].adapted:.3f}, of the gain left {wording.left(one)}"
        for one in record.stored
    ]
    lines.append(f"forgetting: {_changed(record.forgetting)} on reference text")
    return "\n".join(lines)


@summary.register
def _(record: Promotion) -> str:
    return "\n".join([role(record), *record.reasons])


@summary.register
def _(record: SeedNoise) -> str:
    low, high = record.interval
    losses = ", ".join(f"{loss:.3f}" for loss in record.losses)
    return "\n".join(
        [
            f"{record.asked:.3g} is asked of a champion's rival: two of {len(record.seeds)} seeds differ by {record.ratio:.3g} "
            f"[{low:.2g}, {high:.2g}] of a row's standard deviation ({record.row_sd:.3f} nats/token, {record.rows} rows)",
            f"losses {losses} nats/token",
        ]
    )


@summary.register
def _(record: EvidenceFiles) -> str:
    forms = ("card", "statement", "bom", "croissant", "adapter_signature", "evidence_signature")
    written = [getattr(record, name).path for name in forms if getattr(record, name) is not None]
    return "\n".join([f"{', '.join(written)}; {'signed' if record.signed_by else 'not signed'}", *record.missing])


@summary.register
def _(record: Report) -> str:
    return f"{record.file.path}, {record.file.size / 1e6:.1f} MB"


@summary.register
def _(record: TasksOverTime) -> str:
    lines = []
    for task in record.tasks:
        seen = " -> ".join("not measured" if loss is None else f"{loss:.3f}" for loss in task.losses)
        lost = "" if task.lost is None else f"; {task.lost:.0%} of its gain is lost"
        lines.append(f"{task.name}: {seen} nats/token{lost}")
    return "\n".join(lines)


def _comparison(name: str, item: MetricComparison) -> str:
    before, after = value(item.base, item.unit), value(item.adapted, item.unit)
    return f"{name}: {before} -> {after} (change {_changed(item)}, {change(item)}; {item.rows} rows)"


def _changed(item: MetricComparison) -> str:
    unit = "" if item.unit == wording.SHARE_UNIT else f" {item.unit}"
    return f"{changed(item)}{unit}"
