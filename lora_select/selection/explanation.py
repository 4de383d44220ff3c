"""A decision in words, for a terminal."""

from collections.abc import Sequence

from lora_select.records import CandidateScore, Decision

RUNNERS_UP = 3


def explain(decision: Decision) -> str:
    """Paragraphs of plain text: the choice, the reasons, the runners-up, what was ruled out and by which sentence."""
    choice = decision.choice
    kind = "the default, by abstention" if decision.abstained else "chosen"
    rank = f"r {choice.r}, alpha {choice.lora_alpha}, scale {choice.scale:.3g}, " if choice.r else ""
    head = (
        f"{decision.choice_key} ({kind}): {rank}learning rate "
        f"{choice.learning_rate:g}, {choice.num_parameters:,} trainable parameters on {', '.join(choice.target_modules)}."
    )
    tied = [c for c in decision.candidates if c.rejected and all(s.startswith("tied:") for s in c.rejected)]
    refused = [c for c in decision.candidates if c.rejected and c not in tied]
    paragraphs = [
        head,
        _list("Why", decision.reasons),
        _list(f"Tied with it ({len(tied)})", [_line(c) for c in _best(tied)], more=len(tied) - RUNNERS_UP),
        _list(f"Not taken ({len(refused)})", _grouped(refused)),
        f"Rule: {decision.rule}, version {decision.rule_version}.",
    ]
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph)


def _best(candidates: Sequence[CandidateScore]) -> list[CandidateScore]:
    return sorted(candidates, key=lambda c: (-c.score, c.key))[:RUNNERS_UP]


def _line(candidate: CandidateScore) -> str:
    reason = candidate.rejected[0].removeprefix("tied: ")
    return f"{candidate.key}: tangent share {candidate.score:.3f} ± {candidate.score_se:.3f}; {reason}"


def _grouped(candidates: Sequence[CandidateScore]) -> list[str]:
    """One line a sentence, with the candidates it rules out."""
    groups: dict[str, list[str]] = {}
    for candidate in candidates:
        for sentence in candidate.rejected:
            groups.setdefault(sentence, []).append(candidate.key)
    return [f"{', '.join(keys)}: {sentence}" for sentence, keys in groups.items()]


def _list(title: str, lines: Sequence[str], more: int = 0) -> str:
    if not lines:
        return ""
    tail = [f"  - and {more} more"] if more > 0 else []
    return "\n".join([f"{title}:", *(f"  - {line}" for line in lines), *tail])
