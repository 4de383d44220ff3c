"""A race inside the line: its own stage and runs in MLflow, and a decision that replays from its record."""

import json

import pytest
from test_finetune import here, place  # noqa: F401 (`place` is a fixture)

from lora_select.pipeline.history import replay
from lora_select.tracking.store import prepare

pytestmark = pytest.mark.timeout(900)
OVERRIDES = ("selection.learning_rate=null", "selection.race_budget=3", "training.batch_size=4")


@pytest.mark.slow
def test_a_race_decides_the_rate_and_every_probe_is_a_run_in_mlflow(place):  # noqa: F811
    folder, _environment = place
    rows = [{"prompt": f"say {n}", "completion": f"<b>{n}</b>"} for n in range(90)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, said = here(place, "finetune", *OVERRIDES, "--dry-run")
    assert code == 0, said
    [made] = (path.parent for path in (folder / "runs").glob("*/race.json"))
    race, decision = (json.loads((made / f"{name}.json").read_text()) for name in ("race", "decision"))
    assert f"{len(race['probes'])} probes of" in said
    assert "dry run: nothing was trained" in said
    assert (made / "plan.json").is_file()
    assert not (made / "adapter.json").exists()
    assert race["cost"] == pytest.approx(3, rel=0.02)  # in tokens; the budget is kept in steps
    raced = {probe["learning_rate"] for probe in race["probes"] if probe["key"] == decision["choice_key"]}
    assert len(raced) == 3
    assert any("The race ran" in reason for reason in decision["reasons"])
    assert replay(made) == []

    store = prepare(f"sqlite:///{folder}/mlflow.db")
    parent = json.loads((made / "tracking.json").read_text())["parent_run_id"]
    children = store.client.search_runs([store.experiment_id], f"tags.`mlflow.parentRunId` = '{parent}'")
    probes = [child for child in children if child.data.tags["lora.stage"].startswith("probe-")]
    assert len(probes) == len(race["probes"])
    assert {float(child.data.params["learning_rate"]) for child in probes} >= raced

    (made / "race.json").write_text((made / "race.json").read_text().replace('"seed": 0', '"seed": 1', 1))
    assert replay(made) == ["race.json is not the file that the decision was made from"]
