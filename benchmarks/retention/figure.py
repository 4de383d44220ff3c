"""The figure of docs/retention.md, from the results: `python -m benchmarks.retention.figure`."""

from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.retention.kinds import KINDS
from benchmarks.retention.score import Case, cases

OUT = Path(__file__).parents[2] / "docs" / "images" / "retention.png"
COLOURS = {
    "raw": "#b5473c",
    "scale": "#c9963b",
    "filter-mixture": "#2f6f8f",
}
LABELS = {
    "raw": "as trained",
    "scale": "scaled",
    "filter-mixture": "filtered, mixture",
}
"""Of the arms those that every setting has."""


def main() -> None:
    every = cases()
    if not every:
        raise SystemExit("no results yet: python -m benchmarks.retention makes them")
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.9])
    whole = [case for case in every if case.has("filter-mixture") and case.has("scale")] or every
    quick = next((case for case in whole if case.name in ("quickstart", "section")), whole[0])
    _frontier(left, quick)
    _settings(right, [case for case in every if case.has("filter-mixture")])
    figure.savefig(OUT, dpi=130)
    print(OUT)


def _frontier(axis, case: Case) -> None:
    base = case.held["arms"]["base"]["means"]["documentation"]
    raw = case.held["arms"]["raw"]["means"]
    axis.plot(raw["task"], raw["documentation"] - base, "o", color=COLOURS["raw"], ms=9, label=LABELS["raw"])
    for arm in ("scale", "filter-mixture"):
        held = case.held["arms"].get(arm, {})
        points = [
            (raw["task"], raw["documentation"]),
            *((p["task"], p["documentation"]) for p in held.get("frontier", [])),
        ]
        if len(points) > 1:
            axis.plot([x for x, _ in points], [y - base for _, y in points], "-", color=COLOURS[arm], lw=1.2)
        if case.has(arm):
            means = held["means"]
            axis.plot(means["task"], means["documentation"] - base, "o", color=COLOURS[arm], ms=9, label=LABELS[arm])
    axis.axhline(0, color="#777777", lw=1, ls=":")
    axis.axvspan(raw["task"], 1.01 * raw["task"], color="#2f6f8f", alpha=0.08, lw=0)
    axis.set(
        xlabel="loss on held-out task rows, nats a token",
        ylabel="rise on documentation, nats a token",
        title=f"{case.name}: shaded, within 1 % of the task's loss",
    )
    axis.legend(frameon=False, fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)


def _settings(axis, every: list[Case]) -> None:
    arms = list(LABELS)
    for place, arm in enumerate(arms):
        first = next((index for index, case in enumerate(every) if case.has(arm)), None)
        for index, case in enumerate(every):
            if case.has(arm):
                values = [case.rise(arm, kind)[0] for kind in KINDS]
                x = index + (place - (len(arms) - 1) / 2) * 0.15
                axis.plot([x] * len(values), values, "o", color=COLOURS[arm], ms=4, alpha=0.6)
                axis.plot(
                    x,
                    sum(values) / len(values),
                    "_",
                    color=COLOURS[arm],
                    ms=10,
                    mew=2.5,
                    label=LABELS[arm] if index == first else None,
                )
    axis.axhline(0, color="#777777", lw=1, ls=":")
    axis.set_xticks(range(len(every)), [case.name for case in every], fontsize=8, rotation=40, ha="right")
    axis.set_xlim(-0.5, len(every) - 0.5)
    axis.set(ylabel="rise, nats a token", title="five kinds of text (dots) and their mean (bars)")
    axis.legend(frameon=False, fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main()
