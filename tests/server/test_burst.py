"""Fifty registrations of five datasets at once, on a real Prefect server with a real worker: five trainings in order, the rest in seconds.

`make test-server`. Every run is a process that imports torch, so on two busy cores this takes most of an hour.
"""

import datetime
import itertools
import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from prefect_harness import flow_runs, served, wait_for, worker

from lora_select.audit.books.ledger import in_folder
from lora_select.audit.registrations import pending
from lora_select.cli import main

pytestmark = [pytest.mark.server, pytest.mark.timeout(7200)]
DATASETS, REGISTRATIONS = 5, 50
PATIENCE_S = 1800
"""For one run, which begins with a process that imports torch."""


def test_each_dataset_is_trained_on_once_one_at_a_time(tmp_path, tiny_model_folder, monkeypatch, capfd):
    rows = [{"prompt": f"say {n}", "completion": f"number {n}"} for n in range(60)]
    files = [tmp_path / f"rows-{n}.jsonl" for n in range(DATASETS)]
    for number, file in enumerate(files):
        file.write_text("".join(json.dumps(row | {"prompt": f"{row['prompt']} of {number}"}) + "\n" for row in rows))
    with served(tmp_path, tiny_model_folder) as environment:
        monkeypatch.setenv("PREFECT_API_URL", environment["PREFECT_API_URL"])
        told = ["--runs", str(tmp_path / "runs")]
        with ThreadPoolExecutor(10) as pool:
            given = [["data", "register", str(files[n % DATASETS]), *told] for n in range(REGISTRATIONS)]
            assert set(pool.map(main.main, given)) == {0}
        said = capfd.readouterr().out
        assert said.count("event dataset.registered sent") == DATASETS
        assert said.count("no event was sent") == REGISTRATIONS - DATASETS
        for file in files:  # the events of a sender that does not ask the ledger
            assert main.main(["data", "register", str(file), *told, "--again"]) == 0
        wait_for(lambda: len(flow_runs(environment)) == 2 * DATASETS, 120, "a flow run for every event")

        process = worker(environment, tmp_path)
        try:
            wait_for(
                lambda: len(flow_runs(environment, "COMPLETED", "FAILED", "CRASHED")) == 2 * DATASETS,
                2 * DATASETS * PATIENCE_S,
                "the ends",
            )
        finally:
            process.terminate()
            process.wait(60)
        runs = flow_runs(environment)

    log = (tmp_path / "worker.log").read_text()[-4000:]
    names = [run["state"]["name"] for run in runs]
    assert sorted(names) == ["Blocked"] * DATASETS + ["Unchanged"] * DATASETS, log
    assert len(list((tmp_path / "runs" / "stages" / "train").glob("*/record.json"))) == DATASETS
    spans = [tuple(datetime.datetime.fromisoformat(run[name]) for name in ("start_time", "end_time")) for run in runs]
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans)), "one at a time"
    assert pending(tmp_path / "runs") == []
    entries = in_folder(tmp_path / "runs").entries()
    order = [entry.digests["dataset"] for entry in entries if entry.kind == "dataset"]
    assert [entry.digests["dataset"] for entry in entries if entry.kind == "dataset taken"] == order
    trained = [entry.digests["source.train"] for entry in entries if entry.kind == "run" and entry.details["ended"]]
    assert list(dict.fromkeys(trained)) == order
    took = {name: max(run["total_run_time"] for run in runs if run["state"]["name"] == name) for name in set(names)}
    print(f"seconds of the longest run by its end: {took}")
    assert took["Unchanged"] < min(run["total_run_time"] for run in runs if run["state"]["name"] == "Blocked")
