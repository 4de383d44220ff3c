"""A run on MLflow's pages: its name, and its description in plain words."""

from lora_select.evaluation import wording
from lora_select.records import Dataset, Decision, Evaluation, MetricComparison, Promotion
from lora_select.report.verdict import changed, title, value, verdict
from lora_select.selection.explanation import short

SEPARATOR = " · "


def run_name(dataset: str, decision: Decision | None = None, role: str | None = None) -> str:
    """`dataset · choice · role`, as far as it is known; no hash, no config file.

    Args:
        dataset: its name.
        decision: None before the choice.
        role: what the registry was told, such as `champion` or `deferred`; None before.

    >>> run_name("tweets"), run_name("tweets", role="deferred")
    ('tweets', 'tweets · deferred')
    """
    parts = [dataset, short(decision) if decision else None, role]
    return SEPARATOR.join(part for part in parts if part)


def description(
    dataset: Dataset,
    decision: Decision,
    evaluation: Evaluation,
    promotion: Promotion | None,
    cost: str,
) -> str:
    """The run's description for MLflow's page, Markdown: the verdict, a table of metrics, why this role, and `cost`, in words."""
    lines = [
        f"**{_plain(verdict(decision, evaluation, promotion))}**",
        "",
        f"Dataset {_plain(dataset.name)}: {dataset.train_rows} training rows, {dataset.eval_rows} held-out rows.",
        "",
        "| | base model | adapter | change, 95 % interval |",
        "|---|---|---|---|",
        *(_row(title(name, pair), pair) for name, pair in wording.in_order(evaluation.metrics).items()),
        _row(title("loss on general reference text", evaluation.forgetting), evaluation.forgetting),
        "",
    ]
    if promotion is not None:
        answer = promotion.verdict.answer if promotion.verdict else promotion.alias
        lines += [f"The gate's answer: {answer}.", *(f"- {_plain(reason)}" for reason in promotion.reasons), ""]
        if promotion.verdict and promotion.verdict.rows_needed:
            lines += [f"About {promotion.verdict.rows_needed} held-out rows would tell.", ""]
    lines += [f"Chosen because: {_plain(decision.reasons[0])}" if decision.reasons else "", ""]
    lines.append(f"Training: {cost}.")
    return "\n".join(lines).rstrip() + "\n"


def _row(name: str, pair: MetricComparison) -> str:
    return f"| {_plain(name)} | {value(pair.base, pair.unit)} | {value(pair.adapted, pair.unit)} | {changed(pair)} |"


def _plain(text: str) -> str:
    """One line that opens no tag and no table cell, whatever a dataset is called."""
    return " ".join(text.split()).replace("<", "&lt;").replace("|", "&#124;")
