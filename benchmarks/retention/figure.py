"""The figure of docs/retention.md, from the results: `python -m benchmarks.retention.figure`."""

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from benchmarks.retention.score import Case, cases
from benchmarks.retention.settings import RIVALS

OUT = Path(__file__).parents[2] / "docs" / "images" / "retention.png"
FILTER = "filter-mixture"
COLOURS = {"raw": "#b5473c", "scale": "#c9963b", FILTER: "#2f6f8f"}
LABELS = {"raw": "as trained", "scale": "scaled", FILTER: "filtered"}
LINEAR, TICKS = 0.1, (-0.1, 0, 0.1, 0.3, 1, 3)
"""Nats a token up to which the axis of general text is linear, and its ticks."""


def main() -> None:
    found = [case for case in cases() if case.has(FILTER) and case.has("scale") and case.name not in RIVALS]
    if not found:
        raise SystemExit("no results yet: python -m benchmarks.retention makes them")
    found.sort(key=lambda case: case.general("raw"))
    figure = Figure(figsize=(11, 1.6 + 0.21 * len(found)), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1.5, 1], sharey=True)
    _general(left, found)
    _task(right, found)
    left.set_yticks(range(len(found)), [case.name for case in found], fontsize=8)
    left.set_ylim(-0.7, len(found) - 0.3)
    figure.savefig(OUT, dpi=110)
    print(OUT)


def _general(axis, found: list[Case]) -> None:
    """The mean rise of five kinds of text: a line from the adapter as trained to the filtered one."""
    for place, case in enumerate(found):
        axis.plot([case.general("raw"), case.general(FILTER)], [place, place], "-", color="#bbbbbb", lw=1, zorder=1)
    for arm, colour in COLOURS.items():
        values = [case.general(arm) for case in found]
        axis.plot(values, range(len(found)), "o", color=colour, ms=5, label=LABELS[arm], zorder=2)
    axis.set_xscale("symlog", linthresh=LINEAR)
    axis.set_xticks(TICKS)
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g}" if value else "0"))
    axis.set(xlabel="rise on five kinds of general text, nats a token", title="what the base model loses")
    axis.legend(frameon=False, fontsize=9, loc="lower right")
    _plain(axis)


def _task(axis, found: list[Case]) -> None:
    """What the filter costs the task, in per cent of its loss, with one paired standard error; shaded what it may."""
    axis.axvspan(-100, 1, color=COLOURS[FILTER], alpha=0.08, lw=0)
    for place, case in enumerate(found):
        rise, error = (100 * value / case.held["arms"]["raw"]["means"]["task"] for value in case.rise(FILTER, "task"))
        colour = COLOURS[FILTER] if case.tolerated(FILTER) else COLOURS["raw"]
        axis.errorbar(rise, place, xerr=error, fmt="o", color=colour, ms=4, lw=1)
    axis.set_xlim(-14, 14)
    axis.set(xlabel="change of the task's loss, %", title="what filtering costs the task")
    _plain(axis)


def _plain(axis) -> None:
    axis.axvline(0, color="#777777", lw=1, ls=":", zorder=0)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(axis="y", length=0)


if __name__ == "__main__":
    main()
