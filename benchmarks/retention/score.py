"""What the criteria of the experiment say of the results that are there: `python -m benchmarks.retention.score`."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from benchmarks.retention.kinds import KINDS
from benchmarks.retention.study import ARMS, RESULTS
from lora_select.retention.path import paired

ENOUGH = 0.02
"""Nats a token that the raw adapter must have cost: below there is nothing to keep, and no ratio."""
FILTERS = tuple(arm for arm in ARMS if arm != "scale")


@final
@dataclass(frozen=True)
class Case:
    """One setting's results."""

    name: str
    held: Mapping[str, Any]

    def rise(self, arm: str, kind: str) -> tuple[float, float]:
        """Rise over the base in nats a token and its paired standard error; of the task over the raw adapter."""
        losses, before = self.held["arms"], "raw" if kind == "task" else "base"
        return paired(losses[before]["losses"][kind], losses[arm]["losses"][kind], self.held["labels"][kind])

    def has(self, arm: str) -> bool:
        return "losses" in self.held["arms"].get(arm, {})

    def ratio(self, arm: str, kind: str) -> float | None:
        """Forgetting after over before; None where the raw adapter cost nothing."""
        raw = self.rise("raw", kind)[0]
        return self.rise(arm, kind)[0] / raw if raw > ENOUGH else None

    def general(self, arm: str) -> float:
        """Mean rise over all kinds."""
        return math.fsum(self.rise(arm, kind)[0] for kind in KINDS) / len(KINDS)


def cases() -> list[Case]:
    found = [Case(file.stem, json.loads(file.read_text(encoding="utf-8"))) for file in sorted(RESULTS.glob("*.json"))]
    return [case for case in found if case.has("raw") and case.has("base")]


def criteria(every: Sequence[Case], arm: str) -> list[tuple[str, str]]:
    """Each criterion and what came out, for one way of taking the reference's second moments."""
    ours = [case for case in every if case.has(arm)]
    gave = ARMS[arm]
    same = [r for case in ours for kind in KINDS if kind in gave and (r := case.ratio(arm, kind)) is not None]
    other = [r for case in ours for kind in KINDS if kind not in gave and (r := case.ratio(arm, kind)) is not None]
    both = [case for case in ours if case.has("scale")]
    below = sum(case.general(arm) < case.general("scale") for case in both)
    tolerance = {case.name: case.rise(arm, "task") for case in ours}
    beyond = [
        name
        for name, (rise, error) in tolerance.items()
        if rise > max(0.01 * next(c for c in ours if c.name == name).held["arms"]["raw"]["means"]["task"], 2 * error)
    ]
    found = [
        ("settings", str(len(ours))),
        ("forgetting after over before, kinds that gave moments (median <= 0.1)", _summary(same)),
        ("the same, kinds that gave nothing (median <= 0.5, none above 1)", _summary(other)),
        ("below the scaled adapter, mean of five kinds (>= 90 %)", f"{below} of {len(both)}"),
        ("task loss on evaluation rows beyond the tolerance (none)", ", ".join(beyond) or "none"),
    ]
    if len(both) >= 3:
        kappas = [case.held["arms"][arm]["kappa"] for case in both]
        gains = [_advantage(case, arm) for case in both]
        found.append(
            (
                "kappa orders the advantage over scaling (Spearman >= 0.7)",
                f"{spearman(kappas, gains):.2f} over {len(both)}",
            )
        )
    return found


def _advantage(case: Case, arm: str) -> float:
    """Of what scaling leaves of the forgetting, the share that the filter takes off."""
    left = max(case.general("scale"), 1e-9)
    return (case.general("scale") - case.general(arm)) / left


def _summary(values: Sequence[float]) -> str:
    if not values:
        return "no case"
    above = sum(value > 1 for value in values)
    return f"median {statistics.median(values):.2f} of {len(values)}, worst {max(values):.2f}, {above} above 1"


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Rank correlation, ties by order."""

    def ranks(values: Sequence[float]) -> list[int]:
        order = sorted(range(len(values)), key=lambda index: values[index])
        return [order.index(index) for index in range(len(values))]

    return statistics.correlation(ranks(first), ranks(second))


def main() -> None:
    every = cases()
    for case in every:
        raw = case.held["arms"]["raw"]["means"]["task"]
        print(
            f"\n{case.name} (form {case.held['form']}; base {case.held['arms']['base']['means']['task']:.3f}, raw {raw:.4f} on the task)"
        )
        for arm in ("raw", *ARMS):
            if case.has(arm):
                held = case.held["arms"][arm]
                rises = "  ".join(
                    f"{kind} {case.rise(arm, kind)[0]:+.3f}±{case.rise(arm, kind)[1]:.3f}" for kind in KINDS
                )
                extra = f" strength {held['strength']:.3g} kappa {held['kappa'] or 0:.2f}" if arm != "raw" else ""
                print(
                    f"  {arm:<21} task {held['means']['task']:.4f} ({case.rise(arm, 'task')[0]:+.4f})  {rises}{extra}"
                )
            elif "refused" in case.held["arms"].get(arm, {}):
                print(f"  {arm:<21} refused: {case.held['arms'][arm]['refused']}")
        for arm, answers in case.held.get("answers", {}).items():
            print(f"  exact match {arm}: {sum(answers['exact'])} of {len(answers['exact'])}")
    for arm in FILTERS:
        print(f"\n{arm}")
        for words, value in criteria(every, arm):
            print(f"  {words}: {value}")


if __name__ == "__main__":
    main()
