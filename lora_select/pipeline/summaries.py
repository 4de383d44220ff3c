"""One or two lines a person reads for each finished stage."""

import functools
from typing import Any

from lora_select.data.gate.text import one_line
from lora_select.records import (
    Adapter,
    Dataset,
    DatasetProfile,
    Decision,
    Evaluation,
    EvidenceFiles,
    Gate,
    MetricComparison,
    Promotion,
    Race,
    ReloadCheck,
    Report,
    Retention,
    Spectra,
    TrainingPlan,
)
from lora_select.report.report import RIVALS
from lora_select.retention.decide import summary as retained
from lora_select.selection.explanation import EXPERTS
from lora_select.selection.prediction import PREDICTED_GAIN, outcome

NAMES = {"lora": "LoRA", "dora": "DoRA", "rslora": "rsLoRA", "vera": "VeRA", "eva": "EVA", "pissa": "PiSSA"}
"""Variants as their papers spell them."""


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
def _(record: Spectra) -> str:
    ranks = [layer.signal_rank for layer in record.layers]
    return (
        f"{len(record.layers)} layers over {record.microbatches} microbatches ({record.tokens:,} tokens); signal above "
        f"noise in {sum(rank > 0 for rank in ranks)} of them, signal rank up to {max(ranks, default=0)}"
    )


@summary.register
def _(record: Race) -> str:
    head = (
        f"{len(record.probes)} probes of {' and '.join(map(str, record.rungs))} steps, {record.cost:.0%} of the training's tokens; "
        f"{len(record.dropped)} dropped on the way"
    )
    return "\n".join([head, *record.notes])


@summary.register
def _(record: Decision) -> str:
    choice = record.choice
    size = f"{choice.num_parameters:,} parameters, alpha {choice.lora_alpha}; `lora-select explain` has the evidence."
    return "\n".join([*answer(record), f"{record.choice_key}: {size}"])


@summary.register
def _(record: TrainingPlan) -> str:
    return (
        f"{record.total_steps} steps of {record.effective_batch_size} rows on {record.num_processes} {record.device} "
        f"rank{'s' if record.num_processes > 1 else ''}, ZeRO-{record.zero_stage}, {record.precision}; "
        f"{record.minutes.low:.1f} to {record.minutes.high:.1f} min, {record.memory_gib.expected:.1f} GiB a rank"
    )


@summary.register
def _(record: Adapter) -> str:
    resumed = f"; resumed from step {', '.join(map(str, record.resumed_from))}" if record.resumed_from else ""
    head = (
        f"{record.steps} steps, {record.tokens:,} tokens at {record.tokens / max(record.seconds, 1e-9):,.0f} tokens/s, "
        f"last loss {record.final_loss:.3f} nats/token{resumed}"
    )
    return "\n".join(
        [head, *(f"remedy: {item.failure} at step {item.step}: {item.action}" for item in record.remedies)]
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
def _(record: Retention) -> str:
    return "\n".join([retained(record), *record.decision.reasons])


@summary.register
def _(record: Evaluation) -> str:
    ordered = sorted(record.metrics.items(), key=lambda entry: (entry[0] != "loss", entry[0]))
    lines = [_comparison(name.replace("_", " "), item) for name, item in ordered]
    for rival, metrics in record.against.items():
        loss = metrics["loss"]
        verdict = "a tie" if not loss.significant else ("better" if loss.difference < 0 else "worse")
        lines.append(f"against {rival.replace('_', ' ')}: {verdict}, {_interval(loss)} {loss.unit}")
    lines.append(f"forgetting: {_interval(record.forgetting)} {record.forgetting.unit} on reference text")
    return "\n".join(lines)


@summary.register
def _(record: Promotion) -> str:
    name = f"{record.model_name} version {record.version}" if record.version else record.model_name
    return "\n".join([f"{name} is {record.alias}", *record.reasons])


@summary.register
def _(record: EvidenceFiles) -> str:
    forms = ("card", "statement", "bom", "croissant", "adapter_signature", "evidence_signature")
    written = [getattr(record, name).path for name in forms if getattr(record, name) is not None]
    return "\n".join([f"{', '.join(written)}; {'signed' if record.signed_by else 'not signed'}", *record.missing])


@summary.register
def _(record: Report) -> str:
    return f"{record.file.path}, {record.file.size / 1e6:.1f} MB"


def _comparison(name: str, item: MetricComparison) -> str:
    name = f"held-out {name}" if name == "loss" else name
    sure = "" if item.significant else "; not distinguishable"
    return (
        f"{name}: {item.base:.3f} -> {item.adapted:.3f} {item.unit} (change {_interval(item)}{sure}; {item.rows} rows)"
    )


def _interval(item: MetricComparison) -> str:
    return f"{item.difference:+.3f} [{item.interval[0]:+.3f}, {item.interval[1]:+.3f}]"


def answer(decision: Decision) -> list[str]:
    """The decision in three plain sentences: what to train, why, and what to expect."""
    choice = decision.choice
    where = {"all-linear": "all linear layers", "mlp-only": "the feed-forward layers"}.get(
        choice.targets, choice.targets
    )
    size = f", r = {choice.r}" if choice.r else ""
    return [
        f"{NAMES.get(choice.variant, choice.variant)} on {where}{size}, learning rate {choice.learning_rate:.2g}.",
        *(reason for reason in decision.reasons if reason.startswith(EXPERTS)),
        _why(decision),
        _expected(decision),
    ]


def _why(decision: Decision) -> str:
    if decision.race_digest is not None:
        if decision.abstained:
            return "Short trainings did not separate the candidates, so this is the default with the learning rate that came out best."
        return "It came out best in short trainings on your rows."
    if decision.inputs.variant is not None:
        return (
            "You named the variant; the measurements set its learning rate."
            if decision.inputs.learning_rate is None
            else ("You named the variant and the learning rate.")
        )
    if decision.abstained:
        return "The measurements don't separate the variants, so this is the default."
    return "The measurements separate it from plain LoRA."


def _expected(decision: Decision) -> str:
    chosen = next(item for item in decision.candidates if item.key == decision.choice_key)
    gain = next((item for item in chosen.evidence if item.name == PREDICTED_GAIN), None)
    if gain is None or gain.standard_error is None:
        return "What it will gain is not predicted."
    low, high = (gain.value + side * 1.96 * gain.standard_error for side in (-1, 1))
    return f"Expected: the held-out loss falls by about {gain.value:.2g} {gain.unit} (95 %: {low:.2g} to {high:.2g})."


def verdict(decision: Decision, evaluation: Evaluation, promotion: Promotion | None) -> str:
    """The result in sentences: the loss, each rival, the role in the registry, and whether the prediction held."""
    loss = evaluation.metrics["loss"]
    better = loss.significant and loss.difference < 0
    said = [
        f"The adapter {'lowers' if better else 'does not lower'} held-out loss: {loss.base:.3f} -> {loss.adapted:.3f} "
        f"{loss.unit}, change {loss.difference:+.3f}, 95 % interval {loss.interval[0]:+.3f} to {loss.interval[1]:+.3f}."
    ]
    for rival, metrics in evaluation.against.items():
        item, name = metrics["loss"], RIVALS.get(rival, rival)
        word = (
            "not to be told apart from"
            if not item.significant
            else "better than"
            if item.difference < 0
            else "worse than"
        )
        said.append(f"It is {word} {name} ({_interval(item)}).")
    if promotion is not None:
        said.append(f"It is {promotion.alias} of {promotion.model_name}, version {promotion.version}.")
    made = outcome(decision, evaluation)
    if made is not None:
        held = "inside" if made.inside else "OUTSIDE"
        said.append(
            f"The predicted gain was {made.predicted:.3f} [{made.low:.3f}, {made.high:.3f}]; it was {made.observed:.3f}, {held}."
        )
    return " ".join(said)
