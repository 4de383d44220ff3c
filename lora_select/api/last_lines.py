"""What a command of the line says last: the plan, or the verdict and where to look."""

from lora_select.pipeline.outcomes import Finetuned
from lora_select.pipeline.run import Run
from lora_select.records import TrainingPlan
from lora_select.report.verdict import verdict


def say_plan(run: Run, plan: TrainingPlan) -> None:
    """After the plan: nothing was trained."""
    run.place.say()
    for reason in plan.reasons:
        run.place.say(f"  {reason}")
    run.place.say(f"dry run: nothing was trained; records are in {run.folder}")


def say_result(run: Run, done: Finetuned) -> None:
    """The verdict, and where to look."""
    say, latest = run.place.say, run.place.root / "latest"
    promotion = done.promotion.record if done.promotion else None
    say()
    say(verdict(done.chosen.decision.record, done.evaluation.record, promotion, done.adapter.record))
    say(f"  adapter  {latest / 'adapter'}")
    say(f"  report   {latest / 'report.html'}")
    for name, link in _links(run).items():
        say(f"  {name:8} {link}")


def _links(run: Run) -> dict[str, str]:
    tracker = run.place.tracker
    if tracker is None:
        return {}
    links = {"run": tracker.link, "compare": tracker.view_link}
    if not tracker.store.uri.startswith("http"):
        links["serve"] = "make ui   (opens the two links above; stop it with Ctrl-C)"
    return links
