"""Who becomes champion: a pure function from an evaluation and a policy to an alias, its reasons and every criterion.

A champion must pass all criteria, so no correction is needed for asking many (an intersection-union test: Berger, Multiparameter
hypothesis testing and acceptance sampling, Technometrics 24, 1982): the chance of a false promotion is at most that of the
weakest of them. Two families do need one, and get Holm's: metrics of which any one may improve, because each is another chance to
be lucky, and vetoes for harm, because each is another chance to be refused for nothing. Base and champion are asked in fixed
sequence: what does not beat the base is not held against the champion.
"""

from collections.abc import Mapping

from lora_select.evaluation import criteria
from lora_select.evaluation.criteria import FAILED, PASSED, UNDECIDED
from lora_select.evaluation.policy import LEVEL, Policy
from lora_select.evaluation.power import holm
from lora_select.records import Criterion, Evaluation, MetricComparison, Verdict, digest

CHALLENGER = "challenger"
CHAMPION = "champion"
BASE = "the base model"
REFERENCE = "reference text"
"""The built-in reference set: chunks of Python's language reference."""
BEST = "on the rows kept from training the base model was better than the adapter at every look: this training did not help"
LEAKED = "{} of the evaluation rows are given away by the training rows: what was measured on them says nothing of other rows"
PROMOTE, REFUSE = "promote", "refuse"


def decide(
    evaluation: Evaluation, champion: str | None, *, max_forgetting: float | Mapping[str, float]
) -> tuple[str, tuple[str, ...]]:
    """The alias and its reasons under the default policy with this limit on forgetting; see :func:`judge`."""
    verdict = judge(evaluation, champion, Policy(max_forgetting=max_forgetting))
    return verdict.alias, verdict.reasons


def judge(
    evaluation: Evaluation,
    champion: str | None,
    policy: Policy,
    retention: Mapping[str, MetricComparison] | None = None,
    *,
    base_was_best: bool = False,
    leaks: int = 0,
) -> Verdict:
    """Hold an evaluation against a policy.

    Args:
        evaluation: its `against["champion"]` must be there when there is a champion.
        champion: the present champion's version, or None.
        policy: floors, margins, limits.
        retention: loss on each reference set, base to adapted, by its name; None for the evaluation's one built-in set.
        base_was_best: whether on the rows kept from training no look was better than the base model; such an adapter is refused.
        leaks: evaluation rows that the training rows give away; with any of them no adapter is champion.

    Returns:
        `promote` when every criterion passed; `refuse` when one failed; `undecided` when none failed and some cannot be told on
        these rows. Only `promote` gives the alias `champion`. The reasons are those of what did not pass, in the order asked.
    """
    sets = {REFERENCE: evaluation.forgetting} if retention is None else retention
    asked = [criteria.missing("loss", BASE, BEST)] if base_was_best else []
    asked += [criteria.missing("loss", BASE, LEAKED.format(leaks))] if leaks else []
    asked += _improvements(evaluation, champion, policy)
    asked += [criteria.forgetting(name, pair, policy.limit(name)) for name, pair in sets.items()]
    asked += [
        criteria.missing(name, None, f"loss on {name} was not measured, which `promotion.max_forgetting` limits")
        for name in policy.named_references()
        if name not in sets
    ]
    asked += _floors(evaluation, policy)
    asked += _guards(evaluation, champion, policy)
    return _verdict(tuple(asked), champion, policy)


def _improvements(evaluation: Evaluation, champion: str | None, policy: Policy) -> list[Criterion]:
    absent = [name for name in policy.improves if name not in evaluation.metrics]
    if absent:
        return [
            criteria.missing(name, BASE, f"{criteria.title(name)} was not measured, which `promotion.improves` names")
            for name in absent
        ]
    asked = [criteria.enough_rows(name, evaluation.metrics[name]) for name in policy.improves]
    asked += _any_of([criteria.improvement(name, BASE, evaluation.metrics[name]) for name in policy.improves])
    if champion is None:
        return asked
    rival, pairs = f"champion version {champion}", evaluation.against.get(CHAMPION, {})
    if any(name not in pairs for name in policy.improves):
        return [*asked, criteria.missing(policy.improves[0], rival, f"it was not compared with {rival}")]
    return asked + _any_of(
        [criteria.improvement(name, rival, pairs[name], seed_noise=policy.seed_noise) for name in policy.improves]
    )


def _any_of(tested: list[Criterion]) -> list[Criterion]:
    """All of them when one passes after Holm; else what kept the best from it. One metric alone needs no correction."""
    if len(tested) == 1:
        return tested
    adjusted = holm([1.0 if item.p_value is None else item.p_value for item in tested])
    passed = [i for i, p in zip(tested, adjusted, strict=True) if i.outcome == PASSED and p < (1 - LEVEL) / 2]
    return passed or [_first_that(tested)]


def _first_that(tested: list[Criterion]) -> Criterion:
    """The nearest to passing; one that passed alone but not after Holm is undecided."""
    best = min(tested, key=lambda item: 1.0 if item.p_value is None else item.p_value)
    if best.outcome != PASSED:
        return best
    words = f"{best.reason}; not after Holm's correction for {len(tested)} metrics"
    return Criterion(**{**vars(best), "outcome": UNDECIDED, "reason": words})


def _floors(evaluation: Evaluation, policy: Policy) -> list[Criterion]:
    asked = []
    for name, least in policy.floors.items():
        if name in evaluation.metrics:
            asked.append(criteria.floor(name, evaluation.metrics[name], least))
        else:
            known = ", ".join(sorted(evaluation.metrics))
            reason = f"{criteria.title(name)} was not measured, which `promotion.floors` names (measured: {known})"
            asked.append(criteria.missing(name, None, reason))
    free = [name for name in evaluation.checkable if name in evaluation.metrics and name not in policy.floors]
    return asked + [criteria.some_right(name, evaluation.metrics[name]) for name in free]


def _guards(evaluation: Evaluation, champion: str | None, policy: Policy) -> list[Criterion]:
    """Every other metric against base and champion: within its margin where one is set, else not proven worse."""
    rivals = {BASE: evaluation.metrics}
    if champion is not None and CHAMPION in evaluation.against:
        rivals[f"champion version {champion}"] = evaluation.against[CHAMPION]
    pairs = [
        (n, r, p)
        for r, found in rivals.items()
        for n, p in found.items()
        if n not in policy.improves or n in policy.margins
    ]
    shown = [criteria.non_inferiority(n, r, p, policy.margins[n]) for n, r, p in pairs if n in policy.margins]
    free = [(n, r, p) for n, r, p in pairs if n not in policy.margins]
    adjusted = holm([criteria.harm_p_value(p) for _, _, p in free])
    harms = [criteria.no_proven_harm(n, r, p, a, family=len(free)) for (n, r, p), a in zip(free, adjusted, strict=True)]
    absent = [
        criteria.missing(n, None, f"{criteria.title(n)} was not measured, which `promotion.margins` names")
        for n in policy.margins
        if n not in evaluation.metrics
    ]
    return shown + absent + harms


def _verdict(asked: tuple[Criterion, ...], champion: str | None, policy: Policy) -> Verdict:
    kept = [item for item in asked if item.outcome != PASSED]
    if not kept:
        first = [item for item in asked if item.test == "superiority"]
        reasons = tuple(item.reason for item in first)
        if champion is None:
            reasons = (*reasons, "there was no champion")
        return Verdict(PROMOTE, CHAMPION, reasons, asked, None, digest(policy))
    answer = REFUSE if any(item.outcome == FAILED for item in kept) else UNDECIDED
    rows = _rows(kept) if answer == UNDECIDED else None
    return Verdict(answer, CHALLENGER, tuple(item.reason for item in kept), asked, rows, digest(policy))


def _rows(kept: list[Criterion]) -> int | None:
    """The rows that would tell every one of them; None where no number of rows tells one."""
    needed = [item.rows_needed for item in kept]
    return None if None in needed else max(rows for rows in needed if rows is not None)
