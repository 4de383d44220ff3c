"""What the criteria of the experiment say of the results that are there: `python -m benchmarks.retention.score [FOLDER]`."""

import math
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from benchmarks.retention.kinds import KINDS
from benchmarks.retention.settings import RIVALS, SETTINGS
from benchmarks.retention.study import ARMS, RESULTS, gave, read
from lora_select.records import PathPoint
from lora_select.retention.path import LEAST, chosen, paired

ENOUGH = 0.02
"""Nats a token that the raw adapter must have cost: below there is nothing to keep, and no ratio."""
VERDICT = {True: "holds", False: "**fails**", None: "not measured"}
TIMES = "-three-times"
FILTERS = tuple(arm for arm, given in ARMS.items() if given.sources)


@final
@dataclass(frozen=True)
class Case:
    """One setting's results."""

    name: str
    held: Mapping[str, Any]

    def served(self, arm: str) -> str | None:
        """Whose losses the arm has by the shipped rule: its own, those of `raw` where no strength is within it, None where that is not known."""
        held = self.held["arms"].get(arm)
        if held is None or "path" not in held:
            return arm if held is not None and "losses" in held else None
        best = by_the_rule(held["path"], apart="tried" not in held)
        if best is None:
            searched = min((point["strength"] for point in held["path"]), default=math.inf) <= LEAST
            return "raw" if searched else None
        return ("raw" if "refused" in held else arm) if best == held["strength"] else None

    def rise(self, arm: str, kind: str) -> tuple[float, float]:
        """Rise over the base in nats a token and its paired standard error; of the task over the raw adapter."""
        return self.judged(self.served(arm) or arm, kind)

    def judged(self, arm: str, kind: str) -> tuple[float, float]:
        """The same of what was judged under the arm's name, whatever the rule would have served."""
        losses, before = self.held["arms"], "raw" if kind == "task" else "base"
        return paired(losses[before]["losses"][kind], self.losses(arm)[kind], self.held["labels"][kind])

    def losses(self, arm: str) -> Mapping[str, Sequence[float]]:
        """Summed losses of each row by kind, nats."""
        return self.held["arms"][arm]["losses"]

    def has(self, arm: str) -> bool:
        """Whether it is known what the shipped rule does."""
        return self.served(arm) is not None

    def ratio(self, arm: str, kind: str) -> float | None:
        """Forgetting after over before; None where the raw adapter cost nothing."""
        raw = self.rise("raw", kind)[0]
        return self.rise(arm, kind)[0] / raw if raw > ENOUGH else None

    def general(self, arm: str) -> float:
        """Mean rise over all kinds."""
        return math.fsum(self.rise(arm, kind)[0] for kind in KINDS) / len(KINDS)

    def tolerated(self, arm: str) -> bool:
        """Whether the task's rise on evaluation rows is within 1 % of the raw loss or two of its own standard errors."""
        rise, error = self.rise(arm, "task")
        return rise <= max(0.01 * self.held["arms"]["raw"]["means"]["task"], 2 * error)


@final
@dataclass(frozen=True)
class Criterion:
    """What was asked, what came out, and whether it holds; None where nothing was measured."""

    words: str
    value: str
    holds: bool | None


def by_the_rule(path: Sequence[Mapping[str, Any]], *, apart: bool = False) -> float | None:
    """The strength that the shipped rule takes of a kept search path: rise and one standard error together within the limit.

    `apart` is the rule before it, which held each against the limit by itself; `results/first` was chosen by it and keeps no losses of what was tried.
    """

    def used(point: Mapping[str, Any]) -> float:
        rise, error = point["rise"], point["standard_error"]
        return max(rise, error) if apart else rise + error

    points = [PathPoint(**(dict(point) | {"within": used(point) <= point["limit"]})) for point in path]
    best = chosen(points)
    return None if best is None else best.strength


def cases(folder: Path = RESULTS) -> list[Case]:
    found = [Case(file.stem, read(file)) for file in sorted(folder.glob("*.json"))]
    return [case for case in found if case.has("raw") and case.has("base")]


def criteria(every: Sequence[Case], arm: str) -> list[Criterion]:
    """All of them for one way of taking the reference's second moments, by the rule as it is shipped."""
    ours = [case for case in every if case.has(arm) and case.name not in RIVALS]
    both = [case for case in ours if case.has("scale")]
    same, other = (
        [
            r
            for case in ours
            for kind in KINDS
            if (kind in gave(ARMS[arm], case.held.get("setting", {}).get("left_out", ""))) is giving
            and (r := case.ratio(arm, kind)) is not None
        ]
        for giving in (True, False)
    )
    below = sum(case.general(arm) < case.general("scale") for case in both)
    beyond = [case.name for case in ours if not case.tolerated(arm)]
    gained = [(case.held["arms"][arm]["kappa"], gain) for case in both if (gain := advantage(case, arm)) is not None]
    order = spearman([kappa for kappa, _ in gained], [gain for _, gain in gained]) if len(gained) > 2 else None
    return [
        Criterion("forgetting after over before, kinds that gave moments: median <= 0.1", *_ratios(same, 0.1, math.inf)),
        Criterion("kinds that gave nothing: median <= 0.5, none above 1", *_ratios(other, 0.5, 1.0)),
        Criterion("below the scaled adapter, mean of five kinds: >= 90 %", f"{below} of {len(both)}", below >= 0.9 * len(both) if both else None),
        Criterion("task loss on evaluation rows within the tolerance: all", f"beyond: {', '.join(beyond) or 'none'}, of {len(ours)}", not beyond if ours else None),
        Criterion("kappa orders the advantage over scaling: Spearman >= 0.7", "fewer than three" if order is None else f"{order:.2f} over {len(gained)}", None if order is None else order >= 0.7),
        *_against_rivals(ours, every, arm),
        _answers(ours, arm),
        *(_quickstart(case, arm) for case in ours if case.name == "quickstart"),
    ]  # fmt: skip


def _against_rivals(ours: Sequence[Case], every: Sequence[Case], arm: str) -> list[Criterion]:
    """The mean of five kinds beside that of the same task trained otherwise, where both were measured."""
    made = []
    for kind in dict.fromkeys(name.removeprefix(f"{base}-") for name, base in RIVALS.items()):
        pairs = [(a, b) for a in ours for b in every if b.name == f"{a.name}-{kind}"]
        values = [(a.general(arm), b.general("raw")) for a, b in pairs]
        listed = ", ".join(f"{a.name} {x:+.3f} / {y:+.3f}" for (a, _), (x, y) in zip(pairs, values, strict=True))
        holds = statistics.median(x - y for x, y in values) < 0 if values else None
        made.append(Criterion(f"mean of five kinds below {kind}: median", listed or "none", holds))
    return made


def _answers(ours: Sequence[Case], arm: str) -> Criterion:
    """Exact answers lost by more than two paired standard errors."""
    asked = [case for case in ours if "raw" in case.held.get("answers", {})]
    lost, told = [], []
    for case in asked:
        raw = case.held["answers"]["raw"]["exact"]
        served = case.held["answers"].get(case.served(arm) or arm, {"exact": raw})["exact"]
        rise, error = paired(served, raw, [1] * len(raw))
        told.append(f"{sum(raw):g} -> {sum(served):g}")
        lost += [case.name] if rise > max(0.0, 2 * error) else []
    words = "generated answers exact, raw -> filtered, within two standard errors: all"
    return Criterion(words, f"{', '.join(told)}; beyond: {', '.join(lost) or 'none'}", not lost if asked else None)


def _quickstart(case: Case, arm: str) -> Criterion:
    raw, text = case.held["arms"]["raw"]["means"]["task"], case.rise(arm, "documentation")[0]
    share = case.rise(arm, "task")[0] / raw
    return Criterion(
        "quickstart: task within 1 %, documentation within 0.05 nats of the base",
        f"{100 * share:+.1f} %, {text:+.3f}",
        share <= 0.01 and text <= 0.05,
    )


def _ratios(values: Sequence[float], median: float, most: float) -> tuple[str, bool | None]:
    return _summary(values), statistics.median(values) <= median and max(values) <= most if values else None


def advantage(case: Case, arm: str) -> float | None:
    """Of the forgetting that scaling leaves, the share that the filter takes off; over the kinds of text that the raw adapter harmed.

    None where scaling leaves nothing to take off.
    """
    harmed = [kind for kind in KINDS if case.ratio("raw", kind) is not None]
    left, ours = (math.fsum(case.rise(one, kind)[0] for kind in harmed) for one in ("scale", arm))
    return (left - ours) / left if left > ENOUGH else None


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
    every = cases(Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS)
    for case in every:
        print(*_lines(case), sep="\n")
    print("", *summary(every), "", *same_rule(every), "", *after_the_filter(every), sep="\n")
    for arm in FILTERS:
        if not any(case.has(arm) for case in every):
            continue
        print(f"\n{arm}, {sum(case.has(arm) for case in every)} settings\n| criterion | came out | |\n|---|---|---|")
        for one in criteria(every, arm):
            print(f"| {one.words} | {one.value} | {VERDICT[one.holds]} |")


def summary(every: Sequence[Case]) -> Iterator[str]:
    """A row a setting: the task's loss, the filter's rise of it, and the mean rise of five kinds, as trained, scaled and filtered by the rule."""
    yield (
        "| setting | task, as trained | filtered | five kinds, as trained | scaled | filtered | κ | λ |\n|" + "---|" * 8
    )
    for case in every:
        arms, arm = case.held["arms"], "filter-mixture"
        told = f"| {case.name} | {arms['raw']['means']['task']:.3f} |"
        if not case.has(arm):
            yield f"{told} | {case.general('raw'):+.3f} | | | | |"
            continue
        rise, error = case.rise(arm, "task")
        scaled = f"{case.general('scale'):+.3f}" if case.has("scale") else ""
        strength = arms[arm]["strength"] if case.served(arm) == arm else None
        told += f" {rise:+.3f} ± {error:.3f} | {case.general('raw'):+.3f} | {scaled} | {case.general(arm):+.3f} |"
        yield f"{told} {arms[arm]['kappa']:.0f} | {'none' if strength is None else f'{strength:.2g}'} |"


def same_rule(every: Sequence[Case]) -> Iterator[str]:
    """A row an arm of the settings in which more than scaling and the shipped filter were tried: task, five kinds, both as rises."""
    yield "| setting | arm | task, judging rows | five kinds | λ |\n|" + "---|" * 5
    for case in every:
        tried = [arm for arm in ("raw", *ARMS) if case.has(arm)]
        if set(tried) <= {"raw", "scale", FILTERS[0]}:
            continue
        for arm in tried:
            rise, error = case.rise(arm, "task")
            strength = case.held["arms"][arm].get("strength") if case.served(arm) == arm else None
            told = "" if arm == "raw" else f" {rise:+.3f} ± {error:.3f}"
            told = (
                f"{told.strip() or format(case.held['arms'][arm]['means']['task'], '.3f')} | {case.general(arm):+.3f}"
            )
            yield f"| {case.name} | {arm} | {told} | {'' if strength is None else f'{strength:.2g}'} |"


def after_the_filter(every: Sequence[Case]) -> Iterator[str]:
    """What the filter adds to the regret of plain LoRA at the predicted learning rate, in seed SDs of the oracle's setting, and what it leaves of the harm."""
    from benchmarks.selection.judging import seed_sd
    from benchmarks.selection.sweep.table import tables

    known = {(table.setting.model, table.setting.task, table.setting.rows): table for table in tables()}
    added, before, after = [], [], []
    for case in every:
        setting = SETTINGS.get(case.name)
        plain = setting is not None and (setting.variant, setting.targets) == ("lora", "all-linear")
        if setting is None or not plain or case.name in RIVALS or case.name.endswith(TIMES) or not case.has(FILTERS[0]):
            continue
        table = known.get((setting.model, setting.task, setting.rows))
        sd = seed_sd(table) if table is not None else None
        if sd is None:
            continue
        added.append(case.rise(FILTERS[0], "task")[0] / sd)
        before.append(case.general("raw"))
        after.append(case.general(FILTERS[0]))
        yield f"{case.name}: {added[-1]:+.2f} seed SDs, five kinds {before[-1]:+.3f} -> {after[-1]:+.3f}"
    if added:
        yield (
            f"{len(added)} adapters: regret {statistics.median(added):+.2f} seed SDs in the median, {max(added):+.2f} at most; "
            f"five kinds {statistics.median(before):+.3f} -> {statistics.median(after):+.3f}"
        )


def _lines(case: Case) -> Iterator[str]:
    """What was judged of a setting, and what the shipped rule serves."""
    arms = case.held["arms"]
    yield f"\n{case.name} ({case.held['form']}), base {arms['base']['means']['task']:.3f} on the task"
    yield "| arm | task | " + " | ".join(KINDS) + " | strength | kappa | served |\n|" + "---|" * (len(KINDS) + 5)
    for arm in ("raw", *ARMS):
        if arm not in arms:
            continue
        held = arms[arm]
        if "losses" not in held:
            yield f"| {arm} | refused, or no strength |" + " |" * (len(KINDS) + 3)
            continue
        means = held["means"]
        rises = " | ".join(f"{case.judged(arm, kind)[0]:+.3f}" for kind in KINDS)
        rise, error = case.judged(arm, "task")
        told = f"{means['task']:.4f} ({rise:+.4f} ± {error:.4f})"
        served = "" if arm == "raw" else case.served(arm) or "not known"
        yield f"| {arm} | {told} | {rises} | {held.get('strength') or 0:.3g} | {held.get('kappa') or 0:.1f} | {served} |"
    for arm, answers in case.held.get("answers", {}).items():
        yield f"exact match {arm}: {sum(answers['exact'])} of {len(answers['exact'])}"


if __name__ == "__main__":
    main()
