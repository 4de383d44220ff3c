"""Who becomes champion: a pure function from an evaluation to an alias and its reasons."""

from lora_select.evaluation.interval import FEW_ROWS
from lora_select.records import Evaluation, MetricComparison

CHALLENGER = "challenger"
CHAMPION = "champion"


def decide(evaluation: Evaluation, champion: str | None, *, max_forgetting: float) -> tuple[str, tuple[str, ...]]:
    """`champion` only when the loss interval beats the base and the present champion, and nothing else got worse.

    Args:
        evaluation: its `against["champion"]` must be there when there is a champion.
        champion: the present champion's version, or None.
        max_forgetting: the most that loss on reference text may rise, nats per token.

    Returns:
        The alias and the sentences that led to it, numbers included.
    """
    loss = evaluation.metrics["loss"]
    faults = []
    if not _improves(loss):
        faults.append(f"held-out loss does not beat the base model's: {_words(loss)}")
    if loss.rows < FEW_ROWS:
        faults.append(
            f"only {loss.rows} held-out rows: a 95 % interval over fewer than {FEW_ROWS} promises more than it keeps; "
            "raise `dataset.eval_fraction`"
        )
    match = evaluation.metrics.get("exact_match")
    if match and match.significant and match.difference < 0:
        faults.append(f"exact match fell: {_words(match)}")
    if evaluation.forgetting.difference > max_forgetting:
        faults.append(
            f"loss on reference text rose over the limit of {max_forgetting:g} (`promotion.max_forgetting`): "
            f"{_words(evaluation.forgetting)}"
        )
    if champion is not None:
        faults += _against_champion(evaluation, champion)
    if faults:
        return CHALLENGER, tuple(faults)
    rival = f" and champion version {champion}" if champion is not None else "; there was no champion"
    return CHAMPION, (f"held-out loss beats the base model's{rival}: {_words(loss)}",)


def _against_champion(evaluation: Evaluation, champion: str) -> list[str]:
    if "champion" not in evaluation.against:
        return [f"it was not compared with champion version {champion}"]
    loss = evaluation.against["champion"]["loss"]
    if _improves(loss):
        return []
    return [f"held-out loss does not beat champion version {champion}'s: {_words(loss)}"]


def _improves(item: MetricComparison) -> bool:
    return item.significant and item.difference < 0


def _words(item: MetricComparison) -> str:
    return (
        f"{item.base:.3f} -> {item.adapted:.3f} {item.unit}, change {item.difference:+.3f} "
        f"[{item.interval[0]:+.3f}, {item.interval[1]:+.3f}]"
    )
