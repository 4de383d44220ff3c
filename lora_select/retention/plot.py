"""The frontier of one adapter: its task's loss against what it costs of the base model's loss on reference text."""

from pathlib import Path

from lora_select.records import Retention
from lora_select.retention.path import chosen

COLOURS = {"raw": "#b5473c", "scale": "#c9963b", "filter": "#2f6f8f"}
LABELS = {"raw": "as trained", "scale": "scaled", "filter": "filtered"}


def points(made: Retention) -> dict[str, dict[str, tuple[float, float]]]:
    """Reference set -> arm -> (task loss, rise on the set), nats a token, of the adapter itself: rivals are not on its frontier."""
    losses = task_losses(made)
    return {
        one.name: {arm: (losses[arm], rise.difference) for arm, rise in one.rise.items() if arm in LABELS}
        for one in made.references
    }


def task_losses(made: Retention) -> dict[str, float]:
    """Arm -> task loss in nats a token: on rows that chose nothing where there are any, else on the rows that chose the strength."""
    evidence = made.evidence
    selected = {"raw": evidence.raw_loss}
    for arm, path in (("scale", evidence.scale_path), ("filter", evidence.filter_path)):
        if (point := chosen(path)) is not None:
            selected[arm] = point.loss
    return {arm: pair.adapted for arm, pair in made.task.items()} or selected


def frontier(made: Retention, file: Path) -> None:
    """Draw the frontier of every reference set, one panel each; the dotted line is the base model's loss there."""
    from matplotlib.figure import Figure

    data = points(made)
    figure = Figure(figsize=(3.6 * len(data), 3.4), layout="constrained")
    panels = figure.subplots(1, len(data), squeeze=False)[0]
    for axis, (name, arms) in zip(panels, data.items(), strict=True):
        for arm, (task, rise) in arms.items():
            axis.plot(task, rise, "o", color=COLOURS[arm], ms=8)
            axis.annotate(LABELS[arm], (task, rise), textcoords="offset points", xytext=(7, 5), fontsize=9)
        axis.axhline(0, color="#777777", lw=1, ls=":")
        axis.margins(0.35)
        axis.set_title(name, fontsize=9)
        axis.set_xlabel("loss on the task, nats a token")
        axis.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("rise on reference text, nats a token")
    figure.savefig(file, dpi=130)
