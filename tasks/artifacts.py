"""What Prefect's pages show of a run: a link to MLflow, the decision card, the table of candidates."""

from pathlib import Path

from prefect import get_run_logger
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact

from lora_select import records
from lora_select.records import Decision
from lora_select.selection.explanation import explain
from lora_select.tracking import comparison
from lora_select.tracking.store import web_address
from lora_select.tracking.tracker import Tracker


def publish(tracker: Tracker, folder: Path) -> dict[str, str]:
    """Create the artifacts of a finished run and return the links that a person is shown."""
    host, experiment = web_address(tracker.store.uri), tracker.store.experiment_id
    decision = records.read(Decision, folder / "decision.json")
    try:
        create_link_artifact(tracker.link, link_text="MLflow run", key="mlflow-run", description="parent run in MLflow")
        create_link_artifact((folder / "report.html").resolve().as_uri(), link_text="report", key="report")
        create_markdown_artifact(explain(decision), key="decision", description="the decision, in words")
        create_table_artifact(_table(decision), key="candidates", description="every candidate")
    except Exception as error:  # the orchestrator may be away; the run's files are complete without it
        get_run_logger().warning("Prefect artifacts were not created: %s", error)
    links = {"run": tracker.link, "compare": comparison.view_link(host, experiment)}
    if not tracker.store.uri.startswith("http"):
        links["serve"] = "make ui   (opens the two links above; stop it with Ctrl-C)"
    return links


def _table(decision: Decision) -> list[dict[str, object]]:
    return [
        {
            "candidate": candidate.key,
            "chosen": "yes" if candidate.key == decision.choice_key else "",
            "parameters": candidate.spec.num_parameters,
            "learning rate": candidate.spec.learning_rate,
            "score": candidate.score,
            "standard error": candidate.score_se,
            "why not": " ".join(candidate.rejected),
        }
        for candidate in decision.candidates
    ]
