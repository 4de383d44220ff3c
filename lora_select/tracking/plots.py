"""The report's pictures: matplotlib figures as PNG files, readable without colour vision, every axis with its unit."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_select.records import Decision, Spectra

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#8a8a8a"
DPI = 150
LAYER_NUMBER = re.compile(r"\.(\d+)\.")


def training(metrics: Path, path: Path) -> Path:
    """Loss and learning rate by optimizer step."""
    steps = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    figure, axes = _figure(7.2, 3.0)
    numbers = [step["step"] for step in steps]
    axes.plot(numbers, [step["loss"] for step in steps], color=BLUE, linewidth=1.6)
    axes.set(xlabel="optimizer step", ylabel="training loss (nats/token)", ylim=(0, None))
    rate = axes.twinx()
    rate.plot(numbers, [step["learning_rate"] for step in steps], color=GREY, linewidth=1, linestyle="--")
    rate.set_ylabel("learning rate (dashed)", color=GREY)
    rate.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    rate.spines[["top"]].set_visible(False)
    return _save(figure, path)


def before_and_after(rows_file: Path, path: Path) -> Path:
    """Each held-out row's loss before and after; below the diagonal is better."""
    rows = json.loads(rows_file.read_text(encoding="utf-8"))["losses"]
    before = [row["base_loss"] / row["label_tokens"] for row in rows]
    after = [row["adapted_loss"] / row["label_tokens"] for row in rows]
    top = 1.05 * max(*before, *after)
    better = sum(b > a for b, a in zip(before, after, strict=True))
    figure, axes = _figure(4.4, 3.8)
    axes.plot([0, top], [0, top], color=GREY, linewidth=1)
    axes.scatter(before, after, s=14, color=BLUE, alpha=0.6, linewidth=0)
    axes.set(
        xlim=(0, top),
        ylim=(0, top),
        xlabel="base model (nats/token)",
        ylabel="with adapter (nats/token)",
        title=f"{better} of {len(rows)} held-out rows improved",
    )
    axes.set_aspect("equal")
    return _save(figure, path)


def signal_ranks(spectra: Spectra, path: Path) -> Path:
    """Heat map of the signal rank by layer and type: where the data asks for change, above the noise."""
    import numpy as np

    kinds = list(dict.fromkeys(layer.kind for layer in spectra.layers))
    depth = max((_depth(layer.name) for layer in spectra.layers), default=0) + 1
    grid = np.full((len(kinds), depth), np.nan)
    for layer in spectra.layers:
        grid[kinds.index(layer.kind), _depth(layer.name)] = layer.signal_rank
    figure, axes = _figure(7.2, 0.5 + 0.34 * len(kinds) + 0.8)
    image = axes.imshow(grid, aspect="auto", cmap="cividis", vmin=0, interpolation="nearest")
    axes.set_yticks(range(len(kinds)), kinds)
    axes.set(xlabel="decoder block", title="signal rank of the gradient")
    figure.colorbar(image, ax=axes, label="directions above 3 standard errors", pad=0.02)
    axes.spines[:].set_visible(False)
    return _save(figure, path)


def spectrum(spectra: Spectra, path: Path) -> Path:
    """Held-out singular values with three standard errors, of the layers with the most, the median and the least signal."""
    layers = sorted((layer for layer in spectra.layers if layer.heldout_values), key=lambda layer: -layer.signal_energy)
    chosen = {layer.name: layer for layer in (layers[0], layers[len(layers) // 2], layers[-1])} if layers else {}
    figure, grid = _figure(7.2, 2.6, columns=max(1, len(chosen)))
    for axes, layer in zip(_flat(grid), chosen.values(), strict=False):
        places = range(1, len(layer.heldout_values) + 1)
        errors = [3 * error for error in layer.heldout_se]
        axes.axhline(0, color=GREY, linewidth=1)
        axes.errorbar(
            places, layer.heldout_values, yerr=errors, fmt="o", markersize=3, color=BLUE, ecolor=GREY, elinewidth=1
        )
        axes.set_title(f"{_short(layer.name)}\nsignal rank {layer.signal_rank}", fontsize=8)
        axes.set_xlabel("direction")
    _flat(grid)[0].set_ylabel("held-out singular value (± 3 SE)")
    return _save(figure, path)


def candidates(decision: Decision, path: Path) -> Path:
    """Score of every candidate with two standard errors; the choice is marked."""
    shown = [item for item in decision.candidates if item.score_se >= 0]
    figure, axes = _figure(7.2, 0.8 + 0.2 * len(shown))
    for place, item in enumerate(reversed(shown)):
        chosen = item.key == decision.choice_key
        colour = ORANGE if chosen else BLUE
        axes.errorbar(item.score, place, xerr=2 * item.score_se, fmt="D" if chosen else "o", markersize=4, color=colour)
    axes.set_yticks(range(len(shown)), [item.key for item in reversed(shown)], fontsize=7)
    axes.set(
        xlabel="share of the gradient's signal energy in the tangent space at the start (± 2 SE); diamond: the choice"
    )
    axes.xaxis.label.set_fontsize(8)
    axes.grid(axis="x", color="#e5e5e5", linewidth=0.8)
    return _save(figure, path)


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


def _save(figure: "Figure", path: Path) -> Path:
    figure.savefig(path, dpi=DPI, metadata={"Software": None})
    return path


def _depth(name: str) -> int:
    found = LAYER_NUMBER.search(name)
    return int(found.group(1)) if found else 0


def _short(name: str) -> str:
    parts = [part for part in name.split(".") if part not in {"model", "layers"}]
    return ".".join(parts)
