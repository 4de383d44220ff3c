"""Other adapters beside plain LoRA on the same task, as trained and after the filter: `python -m benchmarks.retention.candidates`.

Two trainings are compared on the same judging rows and pieces of text; errors are paired. At the end a race of three learning rates, compared
as trained and after the filter.
"""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import final

from benchmarks.retention.kinds import KINDS
from benchmarks.retention.score import VERDICT, Case, cases
from lora_select.retention.path import paired

PLAIN = ("section", "spelling", "spelling-gemma", "packages", "docstring", "tools", "formula-gemma", "news")
HALVES = ("price", "faster-price", "random", "condition", "feed-forward")
CANDIDATES = ("feed-forward", "eva", "slow-eva", "lora-ga", "shira", "dora", "corda", "osf", "milora")
ARMS = ("raw", "filter-mixture")
RACES = {name: (f"{name}-third", name, f"{name}-three-times") for name in ("packages", "formula", "spelling-seed-4")}
"""LoRA at a third of the shipped rate, at it, at three times it."""
FORGETTING = 0.6
"""Of all-linear's that the best half may cost."""


@final
@dataclass(frozen=True)
class Beside:
    """One arm of a training less the same arm of plain LoRA: of the task's loss and of the mean of five kinds, with paired standard errors, nats a token."""

    task: float
    task_error: float
    text: float
    text_error: float

    @property
    def place(self) -> str:
        """Ahead or behind where one of the two differs by more than its error and the other does not say the opposite."""
        task, text = _sign(self.task, self.task_error), _sign(self.text, self.text_error)
        if task * text < 0:
            return "trades"
        return {-1: "ahead", 0: "level", 1: "behind"}[task or text]


def _sign(difference: float, error: float) -> int:
    return 0 if abs(difference) <= error else int(math.copysign(1, difference))


def beside(other: Case, plain: Case, arm: str) -> Beside:
    """Both as the shipped rule serves that arm.

    Raises:
        ValueError: they were judged on different rows.
    """
    if other.held["labels"] != plain.held["labels"]:
        raise ValueError(f"{other.name} and {plain.name} were judged on different rows")
    ours, theirs = (case.losses(case.served(arm) or arm) for case in (other, plain))
    found = {kind: paired(theirs[kind], ours[kind], plain.held["labels"][kind]) for kind in ("task", *KINDS)}
    text = math.fsum(found[kind][0] for kind in KINDS) / len(KINDS)
    error = math.sqrt(math.fsum(found[kind][1] ** 2 for kind in KINDS)) / len(KINDS)
    return Beside(*found["task"], text, error)


def meets(half: Case, plain: Case, arm: str) -> bool:
    """Forgetting at most 0.6 of all-linear's, and the task's loss at most one paired standard error above it."""
    found = beside(half, plain, arm)
    return half.general(arm) <= FORGETTING * plain.general(arm) and found.task <= found.task_error


def lines(every: Mapping[str, Case], others: tuple[str, ...]) -> Iterator[str]:
    """A row an adapter: losses of task and text as trained and filtered, and its place beside plain LoRA."""
    yield "| | task | five kinds | task, filtered | five kinds, filtered | as trained | filtered |\n|" + "---|" * 7
    for name in PLAIN:
        found = {other: every[f"{name}-{other}"] for other in others if f"{name}-{other}" in every}
        if name not in every or not found:
            continue
        yield _line(f"**{name}**, plain LoRA", every[name])
        for other, case in found.items():
            yield _line(other, case, every[name])


def raced(rates: Sequence[Case], way: str, arm: str) -> Case:
    """Which of a race's trainings a way of choosing takes, by the loss on the rows that choose.

    Args:
        rates: at a third of the shipped rate, at it, at three times it.
        way: `shipped`, which takes the one in the middle; `as trained`; `filtered`.
        arm: of the filter.
    """
    if way == "shipped":
        return rates[1]
    return min(rates, key=lambda case: _selection_loss(case, arm if way == "filtered" else "raw"))


def _selection_loss(case: Case, arm: str) -> float:
    """Summed over the rows that choose, as the rule serves the arm."""
    served = case.served(arm)
    if served == "raw":
        return math.fsum(case.held["selection"])
    held = case.held["arms"][served]
    return next(math.fsum(one["losses"]) for one in held["tried"] if one["strength"] == held["strength"])


def race(every: Mapping[str, Case], arm: str) -> Iterator[str]:
    """A row a task and way: the learning rate taken, the task's loss filtered and above the lowest of the three, and the mean of five kinds."""
    yield "| task | way | training | task, filtered | regret | five kinds |\n|" + "---|" * 6
    sums: dict[str, list[tuple[float, float]]] = {}
    for name, trainings in RACES.items():
        found = [every[one] for one in trainings if one in every and every[one].has(arm)]
        if len(found) < len(trainings):
            continue
        losses = {case.name: _mean(case, arm) for case in found}
        for way in ("shipped", "as trained", "filtered"):
            taken = raced(found, way, arm)
            regret, text = losses[taken.name] - min(losses.values()), taken.general(arm)
            sums.setdefault(way, []).append((regret, text))
            yield f"| {name} | {way} | {taken.name} | {losses[taken.name]:.3f} | {regret:.3f} | {text:+.3f} |"
    for way, parts in sums.items():
        regret, text = (statistics.mean(part) for part in zip(*parts, strict=True))
        yield f"| mean of {len(parts)} | {way} | | | {regret:.3f} | {text:+.3f} |"


def _mean(case: Case, arm: str) -> float:
    """The task's loss on judging rows, nats a label token."""
    return math.fsum(case.losses(case.served(arm) or arm)["task"]) / sum(case.held["labels"]["task"])


def _line(words: str, case: Case, plain: Case | None = None) -> str:
    told = f"| {words} |"
    for arm in ARMS:
        if not case.has(arm):
            told += " | |"
            continue
        told += f" {_mean(case, arm):.3f} | {case.general(arm):+.3f} |"
    for arm in ARMS:
        if plain is None or not (case.has(arm) and plain.has(arm)):
            told += " |"
            continue
        found = beside(case, plain, arm)
        told += (
            f" {found.place}: {found.task:+.3f} ± {found.task_error:.3f}, {found.text:+.3f} ± {found.text_error:.3f} |"
        )
    return told


def main() -> None:
    every = {case.name: case for case in cases()}
    for others in (HALVES, CANDIDATES):
        print("", *lines(every, others), sep="\n")
    for arm in ("filter-mixture", "filter-adapted"):
        print("", arm, *race(every, arm), sep="\n")
    print("\n| half | arm | " + " | ".join(PLAIN[:3]) + " |\n|---|---|---|---|---|")
    for half in HALVES:
        for arm in ARMS:
            found = [(every.get(f"{name}-{half}"), every.get(name)) for name in PLAIN[:3]]
            told = [VERDICT[meets(a, b, arm) if a and b and a.has(arm) else None] for a, b in found]
            print(f"| {half} | {arm} | " + " | ".join(told) + " |")


if __name__ == "__main__":
    main()
