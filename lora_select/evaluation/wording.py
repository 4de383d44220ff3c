"""How people read the names of metrics and of rivals, in one place."""

from collections.abc import Mapping

from lora_select.records import MetricComparison

SHARE_UNIT = "of rows"
"""The unit of a metric that is a share, from 0 to 1."""
METRICS = {"loss": "held-out loss", "exact_match": "exact match", "valid_json": "share of answers that are JSON"}
RIVALS = {
    "plain_lora": "plain LoRA",
    "champion": "the champion",
    "few_shot": "the untrained model with examples in its prompt",
}


def metric(name: str) -> str:
    """A metric of an evaluation as a sentence names it.

    >>> metric("exact_match"), metric("rouge_l")
    ('exact match', 'rouge l')
    """
    return METRICS.get(name, name.replace("_", " "))


def rival(name: str, version: str | None = None) -> str:
    """Another adapter of an evaluation as a sentence names it; `version` is the champion's in the registry.

    >>> rival("plain_lora"), rival("champion", "3")
    ('plain LoRA', 'the champion (version 3)')
    """
    known = RIVALS.get(name, name.replace("_", " "))
    return f"{known} (version {version})" if name == "champion" and version else known


def in_order(metrics: Mapping[str, MetricComparison]) -> dict[str, MetricComparison]:
    """Loss first, since it decides; then the metrics that have a name, then a user's own."""
    known = [name for name in METRICS if name in metrics]
    return {name: metrics[name] for name in (*known, *(name for name in metrics if name not in METRICS))}
