"""The last lines of a run: where everything is, and the verdict in one sentence."""

from pathlib import Path

from flows.console import say
from flows.session import Run
from lora_select.records import Evaluation, TrainingPlan
from tasks import artifacts, store


def dry(run: Run, plan: TrainingPlan) -> str:
    """End after the plan: nothing was trained."""
    say()
    for reason in plan.reasons:
        say(f"  {reason}")
    say(f"dry run: nothing was trained; records are in {run.folder}")
    return str(run.folder)


def full(run: Run, adapter: Path, report: Path, evaluation: Evaluation) -> str:
    """Link what a person opens into the run's folder, point `runs/latest` to it, and say where to look."""
    root = run.place.root
    store.link(root, run.key, adapter, "adapter")
    store.link(root, run.key, report / "report.html", "report.html")
    store.point_latest(root, run.key)
    links = artifacts.publish(run.place.tracker, run.folder)
    loss = evaluation.metrics["loss"]
    better = loss.significant and loss.difference < 0
    say()
    say(
        f"The adapter {'lowers' if better else 'does not lower'} held-out loss: {loss.base:.3f} -> {loss.adapted:.3f} "
        f"{loss.unit}, change {loss.difference:+.3f}, 95 % interval {loss.interval[0]:+.3f} to {loss.interval[1]:+.3f}."
    )
    say(f"  adapter  {root / 'latest' / 'adapter'}")
    say(f"  report   {root / 'latest' / 'report.html'}")
    for name, link in links.items():
        say(f"  {name:8} {link}")
    return str(run.folder)
