"""What the selection promised, held against the sweep: five claims, each with the number that decides it, met or not.

Whatever was fitted was fitted on other tasks; losses are those of the odd rows, which no strategy saw.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from benchmarks.selection.case import Case, base_loss
from benchmarks.selection.judging import Regret, forgetting, loss, regrets, seed_sd, seeds
from benchmarks.selection.strategies import STRATEGIES, TUNED
from benchmarks.selection.sweep.candidates import REFERENCE
from benchmarks.selection.sweep.table import Run
from lora_select.selection.prediction import predicted_gain

TIE_SHARE = 0.01
SPARES = 1 / 3


@final
@dataclass(frozen=True)
class Claim:
    """A promise, whether it is kept (None: the sweep cannot say yet), and the numbers."""

    promise: str
    kept: bool | None
    numbers: str


def claims(cases: Sequence[Case], controls: Sequence[Case], rule: str, plain: str) -> list[Claim]:
    """All five, in the order of the documentation.

    Args:
        cases: the settings.
        controls: those with shuffled labels.
        rule: the way of choosing that is judged.
        plain: a race of equal cost without the spectral stage.
    """
    return [
        never_far_behind(cases, rule),
        cheap(cases, rule, plain),
        spares(cases, rule),
        covers(cases, rule),
        abstains(controls, rule),
    ]


def never_far_behind(cases: Sequence[Case], rule: str) -> Claim:
    """Ours against LoRA at the sweep's best rate, setting by setting."""
    promise = "never worse than LoRA at its best rate by more than one seed SD"
    gaps = {}
    for case in cases:
        ours, tuned, sd = regrets(case, rule), regrets(case, TUNED), seed_sd(case.table)
        if ours and tuned and sd:
            gaps[case.table.setting.name] = (ours.nats - tuned.nats) / sd
    if not gaps:
        return Claim(promise, None, "no setting with three seeds and a full shortlist")
    worst = max(gaps, key=lambda name: gaps[name])
    above = sum(gap > 1 for gap in gaps.values())
    numbers = f"worst {gaps[worst]:+.2f} SD ({worst}), median {statistics.median(gaps.values()):+.2f}; above 1 SD on {above} of {len(gaps)}"
    return Claim(promise, above == 0, numbers)


def cheap(cases: Sequence[Case], rule: str, plain: str) -> Claim:
    """Median regret and cost of ours, beside a plain race of the same size."""
    promise = "median regret at most one seed SD at no more than 10 % of the sweep, below a plain race of equal cost"
    pairs = [(regrets(case, rule), regrets(case, plain)) for case in cases]
    own = [a for a, _ in pairs if a and a.sds is not None]
    both = [(a, b) for a, b in pairs if a and b and a.sds is not None and b.sds is not None]
    if not both:
        return Claim(promise, None, "no setting with three seeds and a full shortlist")
    all_of_ours, (ours, other) = _middle(own), (_middle([pair[side] for pair in both]) for side in (0, 1))
    kept = all_of_ours[0] <= 1 and all_of_ours[1] <= 0.1 and ours[0] < other[0]
    return Claim(
        promise,
        kept,
        f"{all_of_ours[0]:.2f} SD at {all_of_ours[1]:.1%} over {len(own)}; over the {len(both)} of the plain race ours "
        f"{ours[0]:.2f} at {ours[1]:.1%}, the plain race {other[0]:.2f} at {other[1]:.1%}",
    )


def _middle(found: Sequence[Regret]) -> tuple[float, float]:
    return statistics.median(item.sds or 0.0 for item in found), statistics.median(item.cost for item in found)


def spares(cases: Sequence[Case], rule: str) -> Claim:
    """Forgetting of the choice over that of LoRA at its best rate, where some run ties it and forgets at most a third."""
    promise = "where a tie forgets at most a third of what LoRA at its best rate forgets, so does the choice (half in the median)"
    shares = []
    for case in cases:
        home, ours = STRATEGIES[TUNED](case), STRATEGIES[rule](case)
        if home and ours and _sparing_tie(case, home[0].run):
            level = forgetting(case.table, home[0].run)
            shares.append(statistics.mean(forgetting(case.table, choice.run) for choice in ours) / level)
    if not shares:
        return Claim(promise, None, "no setting has such a tie")
    kept = max(shares) <= SPARES or statistics.median(shares) <= 0.5
    low = sum(share <= SPARES for share in shares)
    return Claim(
        promise, kept, f"median share {statistics.median(shares):.2f}; at most a third on {low} of {len(shares)}"
    )


def _sparing_tie(case: Case, home: Run) -> bool:
    """Whether any run of the sweep ties with `home` on loss and forgets at most a third of it."""
    table, level = case.table, forgetting(case.table, home)
    reach = max(TIE_SHARE * loss(table, home), seed_sd(table) or 0.0)
    runs = [run for run in table.outcomes if run.seed == 0 and run.share == 1.0]
    tied = [run for run in runs if loss(table, run) <= loss(table, home) + reach]
    return level > 0 and any(forgetting(table, run) <= SPARES * level for run in tied)


def covers(cases: Sequence[Case], rule: str) -> Claim:
    """The predicted gain's interval, from the race's probe or else from constants of the other tasks, against what the choice gained; where one is given.

    That is the run of another seed where there is one: a probe is the run of the first seed.
    """
    promise = "intervals of the predicted gain hold in at least 90 % of the settings"
    inside, widths, apart = [], [], 0
    for case in cases:
        for choice in STRATEGIES[rule](case)[:1]:
            made = choice.gain or predicted_gain(base_loss(case.table), case.constants)
            if made is None or made.standard_error is None:
                continue
            trained, reach = seeds(case.table, choice.run), 1.96 * made.standard_error
            gain = base_loss(case.table) - trained[-1]
            apart += len(trained) > 1
            inside.append(abs(gain - made.value) <= reach)
            widths.append(reach / base_loss(case.table))
    if not inside:
        return Claim(promise, None, "nothing is predicted without a race: the interval would reach too far")
    held = sum(inside) / len(inside)
    return Claim(
        promise,
        held >= 0.9,
        f"{sum(inside)} of {len(inside)}, {apart} by another seed, median half-width {statistics.median(widths):.2f} of the base loss",
    )


def abstains(controls: Sequence[Case], rule: str) -> Claim:
    """The race on shuffled labels: nothing but LoRA may be chosen."""
    promise = "on shuffled labels the race keeps plain LoRA"
    choices = {case.table.setting.name: STRATEGIES[rule](case) for case in controls}
    choices = {name: found for name, found in choices.items() if found and found[0].rivals}
    if not choices:
        return Claim(promise, None, "no control was run in which anything else could be chosen")
    wrong = {name: found[0].run.candidate for name, found in choices.items() if found[0].run.candidate != REFERENCE}
    told = ", ".join(f"{name}: {candidate}" for name, candidate in wrong.items())
    return Claim(
        promise, not wrong, f"kept on {len(choices) - len(wrong)} of {len(choices)}" + (f"; {told}" if told else "")
    )


def table_of(found: Sequence[Claim]) -> str:
    """One line a claim."""
    words = {True: "holds", False: "FAILS", None: "open"}
    return "\n".join(f"{words[claim.kept]:6} {claim.promise}: {claim.numbers}" for claim in found)
