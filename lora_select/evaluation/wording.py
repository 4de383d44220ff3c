"""How people read the names of metrics and of rivals, in one place."""

from collections.abc import Mapping

from lora_select.records import MetricComparison, StoredGain

SHARE_UNIT = "of rows"
"""The unit of a metric that is a share, from 0 to 1."""
FEW_SHOT = "few_shot"
"""Name of the untrained model with examples in its prompt, beside adapters."""
METRICS = {"loss": "held-out loss", "exact_match": "exact match", "valid_json": "share of answers that are JSON"}
RIVALS = {
    "plain_lora": "plain LoRA",
    "champion": "the champion",
    FEW_SHOT: "the untrained model with examples in its prompt",
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


def left(one: StoredGain) -> str:
    """What is left of the gain in a form, with its 95 % interval; `not told` where the gain itself cannot be told from noise.

    >>> left(StoredGain("nf4", 3.4, {}, 0.962, (0.94, 0.98)))
    '96.2 % (94.0 to 98.0)'
    """
    if one.left is None or one.interval is None:
        return "not told"
    low, high = one.interval
    return f"{100 * one.left:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def in_order(metrics: Mapping[str, MetricComparison]) -> dict[str, MetricComparison]:
    """Loss first, since it decides; then the metrics that have a name, then a user's own."""
    known = [name for name in METRICS if name in metrics]
    return {name: metrics[name] for name in (*known, *(name for name in metrics if name not in METRICS))}
