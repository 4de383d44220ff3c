"""The report's pictures: matplotlib figures as PNG files, readable without colour vision, every axis with its unit."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_select.records import CandidateScore, Decision, LayerSpectra, Spectra, Validation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREY, PALE, BAND = "#0072b2", "#d55e00", "#8a8a8a", "#e8e8e8", "#d9d9d9"
SHADES = ("#9ecae1", "#4292c6", "#08519c", "#08306b")
"""Light to dark blue: small to large rank. Told apart by lightness alone."""
WIDTH = 7.2
DPI = 150
LAYER_NUMBER = re.compile(r"\.(\d+)\.")


def training(metrics: Path, path: Path, validation: Validation | None = None) -> Path:
    """Loss (left) and learning rate (right) by optimizer step; a ring marks the look at the kept rows that the adapter is of."""
    steps = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    figure, axes = _figure(WIDTH, 2.8)
    numbers = [step["step"] for step in steps]
    mark = "o" if len(steps) < 3 else None  # a line needs two points to be seen
    axes.plot(numbers, [step["loss"] for step in steps], color=BLUE, linewidth=1.6, marker=mark)
    if validation is not None:
        axes.plot(
            validation.steps, validation.losses, "o-", color=ORANGE, markersize=4, label="rows kept from training"
        )
        chosen = validation.losses[validation.steps.index(validation.chosen_step)]
        axes.plot(validation.chosen_step, chosen, "o", color=ORANGE, markersize=10, fillstyle="none")
        axes.legend(frameon=False, loc="lower left")
    axes.set(xlabel="optimizer step", ylabel="training loss (nats/token)", ylim=(0, None))
    axes.yaxis.label.set_color(BLUE)
    _whole(axes.xaxis)
    rate = axes.twinx()
    rate.plot(numbers, [1e4 * step["learning_rate"] for step in steps], color=GREY, linewidth=1, linestyle="--")
    rate.set_ylabel("learning rate (1e-4, dashed)", color="#555555")
    rate.set_ylim(0, None)
    rate.spines[["top"]].set_visible(False)
    return _save(figure, path)


def before_and_after(rows_file: Path, path: Path) -> Path:
    """Each held-out row's loss before and after (below the diagonal is better), and how the changes spread."""
    rows = json.loads(rows_file.read_text(encoding="utf-8"))["losses"]
    before = [row["base_loss"] / row["label_tokens"] for row in rows]
    after = [row["adapted_loss"] / row["label_tokens"] for row in rows]
    change = [b - a for a, b in zip(before, after, strict=True)]
    better = sum(value < 0 for value in change)
    figure, (left, right) = _figure(WIDTH, 3.0, columns=2)
    top = 1.05 * max(*before, *after)
    left.plot([0, top], [0, top], color=GREY, linewidth=1)
    left.scatter(before, after, s=14, color=BLUE, alpha=0.6, linewidth=0)
    left.set(xlim=(0, top), ylim=(0, top), xlabel="base model (nats/token)", ylabel="with adapter (nats/token)")
    left.set_aspect("equal")
    left.set_title("each dot is a held-out row", fontsize=9)
    right.hist(change, bins=min(24, max(5, len(rows) // 4)), color=BLUE, alpha=0.8)
    right.axvline(0, color="black", linewidth=1)
    right.set(xlabel="change of a row's loss (nats/token)", ylabel="held-out rows")
    right.set_title(f"{better} of {len(rows)} rows improved", fontsize=9)
    _whole(right.yaxis)
    return _save(figure, path)


def signal_ranks(spectra: Spectra, path: Path) -> Path:
    """Heat map of the signal rank by layer and type: where the data asks for change, above the noise."""
    import numpy as np

    kinds = list(dict.fromkeys(layer.kind for layer in spectra.layers))
    depth = max((_depth(layer.name) for layer in spectra.layers), default=0) + 1
    grid = np.full((max(1, len(kinds)), depth), np.nan)
    for layer in spectra.layers:
        grid[kinds.index(layer.kind), _depth(layer.name)] = layer.signal_rank
    most = max((len(layer.heldout_values) for layer in spectra.layers), default=1)
    figure, axes = _figure(WIDTH, 1.3 + 0.3 * len(kinds))
    image = axes.imshow(grid, aspect="auto", cmap="cividis", vmin=0, vmax=most, interpolation="nearest")
    axes.set_facecolor(PALE)  # a layer that was not measured
    axes.set_yticks(range(len(kinds)), kinds)
    axes.set(xlabel="decoder block")
    _whole(axes.xaxis)
    bar = figure.colorbar(image, ax=axes, pad=0.02)
    bar.set_label("signal rank", fontsize=9)
    _whole(bar.ax.yaxis)
    if any(layer.signal_rank == most for layer in spectra.layers):
        bar.ax.set_title(f"≥ {most}", fontsize=8)  # no more directions were measured: a floor, not a value
    axes.spines[:].set_visible(False)
    return _save(figure, path)


def spectrum(spectra: Spectra, path: Path) -> Path:
    """Held-out singular values over their noise, for the layers with the most, the median and the least signal energy."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    layers = sorted((layer for layer in spectra.layers if layer.heldout_values), key=lambda layer: -layer.signal_energy)
    chosen = {"most signal": 0, "median": len(layers) // 2, "least signal": -1} if len(layers) > 2 else {}
    shown = {layers[at].name: (f"{what}: ", layers[at]) for what, at in chosen.items()}
    shown = shown or {layer.name: ("", layer) for layer in layers}
    figure, grid = _figure(WIDTH, 3.0, columns=max(1, len(shown)))
    for axes, (what, layer) in zip(_flat(grid), shown.values(), strict=False):
        _spectrum_of(axes, layer, what)
    _flat(grid)[0].set_ylabel("held-out singular value\nof the gradient (nats/unit)")
    handles = [
        Line2D([], [], marker="o", linestyle="", markersize=4, color=BLUE, label="signal"),
        Line2D(
            [], [], marker="o", linestyle="", markersize=4, color=BLUE, fillstyle="none", label="not told from noise"
        ),
        Patch(color=BAND, label="three standard errors"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    return _save(figure, path)


def _spectrum_of(axes: "Axes", layer: LayerSpectra, what: str) -> None:
    """Filled dots count as signal; the band reaches three standard errors above zero."""
    values, band = layer.heldout_values, [3 * error for error in layer.heldout_se]
    places = list(range(1, len(values) + 1))
    rank = layer.signal_rank
    axes.bar(places, band, width=1, color=BAND, linewidth=0)
    clearest = sorted(range(len(values)), key=lambda at: values[at] / (layer.heldout_se[at] or math.inf), reverse=True)
    for chosen, fill in ((clearest[:rank], "full"), (clearest[rank:], "none")):
        axes.plot([places[at] for at in chosen], [values[at] for at in chosen], "o", ms=4, color=BLUE, fillstyle=fill)
    shown = [value for value in (*values, *band) if value > 0]
    if shown:
        axes.set_yscale("log", nonpositive="clip")
        axes.set_ylim(0.5 * min(shown), 2 * max(shown))
    floor = "≥ " if rank == len(values) else ""
    axes.set_title(f"{what}{_short(layer.name)}\nsignal rank {floor}{rank}", fontsize=8)
    axes.set_xlabel("direction")
    axes.set_xlim(0.4, len(values) + 0.6)
    _whole(axes.xaxis)


def candidates(decision: Decision, path: Path) -> Path:
    """Score of every candidate with two standard errors, one line for variant and targets, one shade for each rank."""
    from matplotlib.lines import Line2D

    shown = [item for item in decision.candidates if item.score_se < 1]  # an error of 1: this rank was not measured
    lines = list(dict.fromkeys((item.spec.variant, item.spec.targets) for item in shown))
    ranks = sorted({item.spec.r for item in shown})
    shades = dict(zip(ranks, _spread(SHADES, len(ranks)), strict=True))
    figure, axes = _figure(WIDTH, 1.2 + 0.34 * max(1, len(lines)))
    for item in shown:
        place = lines.index((item.spec.variant, item.spec.targets))
        offset = 0.22 * (ranks.index(item.spec.r) - (len(ranks) - 1) / 2) / max(1, (len(ranks) - 1) / 2)
        axes.errorbar(item.score, place + offset, xerr=2 * item.score_se, **_look(item, decision, shades))
    axes.set_yticks(range(len(lines)), [f"{variant}, {targets}" for variant, targets in lines])
    axes.set_ylim(max(1, len(lines)) - 0.5, -0.5)
    axes.set(xlabel="score: share of the gradient's signal energy that the adapter can follow at its start (± 2 SE)")
    axes.grid(axis="x", color=PALE, linewidth=0.8)
    axes.set_axisbelow(True)
    handles = [Line2D([], [], marker="o", linestyle="", color=shades[r], label=f"r {r}") for r in ranks]
    handles.append(Line2D([], [], marker="D", linestyle="", color=ORANGE, label="the choice"))
    if any(_ruled_out(item) for item in shown):
        handles.append(Line2D([], [], marker="x", linestyle="", color=GREY, label="ruled out"))
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False, fontsize=8)
    return _save(figure, path)


def _look(item: CandidateScore, decision: Decision, shades: Mapping[int, str]) -> dict[str, Any]:
    if item.key == decision.choice_key:
        return {"fmt": "D", "color": ORANGE, "markersize": 6, "zorder": 3}
    if _ruled_out(item):
        return {"fmt": "x", "color": GREY, "markersize": 5, "elinewidth": 1}
    return {"fmt": "o", "color": shades[item.spec.r], "markersize": 4}


def _ruled_out(item: CandidateScore) -> bool:
    """Against a constraint, in distinction to tied with the choice (see `selection.explanation`)."""
    return bool(item.rejected) and not item.rejected[0].startswith("tied")


def _spread(shades: Sequence[str], count: int) -> list[str]:
    """`count` shades from light to dark; the darkest again when there are more ranks than shades."""
    if count == 1:
        return [shades[-2]]
    return [shades[min(index, len(shades) - 1)] for index in range(count)]


def _figure(width: float, height: float, columns: int = 1) -> "tuple[Figure, Any]":
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"font.size": 9}):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(1, columns)
    for one in _flat(axes):
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _flat(axes: Any) -> "Sequence[Axes]":
    return list(axes.flat) if hasattr(axes, "flat") else [axes]


def _whole(axis: Any) -> None:
    """Ticks at whole numbers only: there is no step 2.5."""
    axis.get_major_locator().set_params(integer=True)


def _save(figure: "Figure", path: Path) -> Path:
    figure.savefig(path, dpi=DPI, metadata={"Software": None})
    return path


def _depth(name: str) -> int:
    found = LAYER_NUMBER.search(name)
    return int(found.group(1)) if found else 0


def _short(name: str) -> str:
    parts = [part for part in name.split(".") if part not in {"model", "layers"}]
    return ".".join(parts)
