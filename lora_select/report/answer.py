"""The answer of a run in plain words: one line for the terminal, a description for MLflow's page, a name for the run."""

from collections.abc import Mapping

from lora_select.records import Cost, Dataset, Decision, Evaluation, MetricComparison, Promotion
from lora_select.selection.prediction import outcome

RIVALS = {"plain_lora": "plain LoRA", "champion": "the champion"}
METRICS = {"loss": "held-out loss", "exact_match": "exact match", "valid_json": "answers that are JSON"}
SEPARATOR = " · "


def choice(decision: Decision) -> str:
    """What was chosen, as a person says it.

    Returns:
        Such as `LoRA r 16`; a variant without a rank is its name alone.
    """
    spec = decision.choice
    name = {"lora": "LoRA", "dora": "DoRA", "rslora": "rsLoRA", "vera": "VeRA"}.get(spec.variant, spec.variant)
    return f"{name} r {spec.r}" if spec.r else name


def run_name(dataset: str, decision: Decision | None = None, role: str | None = None) -> str:
    """`dataset · choice · role`, as far as it is known; no hash, no config file.

    Args:
        dataset: its name.
        decision: None before the choice.
        role: `champion`, `challenger`, `dry run`, `unchanged`; None before.

    >>> run_name("tweets"), run_name("tweets", role="dry run")
    ('tweets', 'tweets · dry run')
    """
    parts = [dataset, choice(decision) if decision else None, role]
    return SEPARATOR.join(part for part in parts if part)


def verdict(decision: Decision, evaluation: Evaluation, promotion: Promotion | None = None) -> str:
    """One line: the role, what the loss did, how it stands to each rival, and whether the prediction held.

    The unit is the metric's own. `INSIDE` and `OUTSIDE` are of the prediction's 95 % interval.
    """
    loss = evaluation.metrics["loss"]
    parts = [f"{_role(promotion)}: {choice(decision)} {_effect(loss)}"]
    parts += [
        _rival(name, pairs["loss"], promotion) for name, pairs in sorted(evaluation.against.items()) if "loss" in pairs
    ]
    made = outcome(decision, evaluation)
    if made is not None:
        parts.append(
            f"predicted {made.predicted:.3f} [{made.low:.3f}, {made.high:.3f}], came out {made.observed:.3f}: "
            f"{'INSIDE' if made.inside else 'OUTSIDE'} its interval"
        )
    return "; ".join(parts) + "."


def description(
    dataset: Dataset,
    decision: Decision,
    evaluation: Evaluation,
    promotion: Promotion | None = None,
    cost: Cost | None = None,
) -> str:
    """The run's description for MLflow's page, Markdown: the verdict, a table of metrics, why this role, what it cost."""
    lines = [
        f"**{_plain(verdict(decision, evaluation, promotion))}**",
        "",
        f"Dataset {_plain(dataset.name)}: {dataset.train_rows} training rows, {dataset.eval_rows} held-out rows.",
        "",
        "| | base model | adapter | change, 95 % interval |",
        "|---|---|---|---|",
        *(_row(METRICS.get(name, name.replace("_", " ")), pair) for name, pair in _ordered(evaluation.metrics)),
        _row("loss on reference text", evaluation.forgetting),
        "",
    ]
    if promotion is not None:
        answer = promotion.verdict.answer if promotion.verdict else promotion.alias
        lines += [f"The gate's answer: {answer}.", *(f"- {_plain(reason)}" for reason in promotion.reasons), ""]
        if promotion.verdict and promotion.verdict.rows_needed:
            lines += [f"About {promotion.verdict.rows_needed} held-out rows would tell.", ""]
    lines += [f"Chosen because: {_plain(decision.reasons[0])}" if decision.reasons else "", ""]
    if cost is not None:
        money = f", {cost.money:.2f} {cost.currency}" if cost.money is not None else ""
        lines.append(f"Training: {cost.hours:.2f} h, {cost.energy.kwh:.3f} kWh ({cost.energy.source}){money}.")
    return "\n".join(lines).rstrip() + "\n"


def _role(promotion: Promotion | None) -> str:
    if promotion is None:
        return "Not judged"
    return f"{promotion.alias.capitalize()}, version {promotion.version} of {promotion.model_name}"


def _effect(loss: MetricComparison) -> str:
    span = f"{loss.base:.3f} to {loss.adapted:.3f} {loss.unit}, change {loss.difference:+.3f} {_interval(loss)}"
    if not loss.significant:
        return f"leaves held-out loss where it was ({span})"
    return f"{'lowers' if loss.difference < 0 else 'RAISES'} held-out loss from {span}"


def _rival(name: str, loss: MetricComparison, promotion: Promotion | None) -> str:
    rival = RIVALS.get(name, name.replace("_", " "))
    if name == "champion" and promotion is not None and promotion.previous_champion:
        rival = f"champion version {promotion.previous_champion}"
    how = "ties with" if not loss.significant else ("beats" if loss.difference < 0 else "is WORSE than")
    return f"it {how} {rival} ({loss.difference:+.3f} {_interval(loss)})"


def _row(name: str, pair: MetricComparison) -> str:
    return f"| {_plain(name)} | {pair.base:.3f} | {pair.adapted:.3f} | {pair.difference:+.3f} {_interval(pair)} |"


def _interval(pair: MetricComparison) -> str:
    return f"[{pair.interval[0]:+.3f}, {pair.interval[1]:+.3f}]"


def _ordered(metrics: Mapping[str, MetricComparison]) -> list[tuple[str, MetricComparison]]:
    return sorted(metrics.items(), key=lambda entry: (entry[0] != "loss", entry[0]))


def _plain(text: str) -> str:
    """One line that opens no tag and no table cell, whatever a dataset is called."""
    return " ".join(text.split()).replace("<", "&lt;").replace("|", "&#124;")
