"""The uninterrupted run that every harmed one must equal, and the table of what was tried."""

import os
from dataclasses import dataclass
from pathlib import Path

import pytest
from fault_harness import Run
from training_jobs import job

BEGIN, END = "<!-- faults: written by `make test-faults` -->", "<!-- end of faults -->"
CHANGES = {"total_steps": 40, "checkpoint_every": 5}
"""40 steps of two ranks, a checkpoint every 5 steps."""


@dataclass(frozen=True)
class Outcome:
    """A line of the table; `again` counts the steps that were done twice."""

    injected: str
    done: str
    again: int
    lost: str


@pytest.fixture(scope="session")
def table():
    """Outcomes of the tests that passed, by order; written into the file that LORA_SELECT_FAULT_TABLE names."""
    found: list[Outcome] = []
    yield found
    if path := os.environ.get("LORA_SELECT_FAULT_TABLE"):
        lines = ["| injected | what was done | steps done twice, at least | lost |", "|---|---|---|---|"]
        lines += [f"| {one.injected} | {one.done} | {one.again} | {one.lost} |" for one in found]
        text = Path(path).read_text(encoding="utf-8") if Path(path).exists() else f"{BEGIN}\n{END}\n"
        head, rest = text.split(BEGIN)
        Path(path).write_text(
            head + BEGIN + "\n" + "\n".join(lines) + "\n" + END + rest.split(END)[1], encoding="utf-8"
        )


@pytest.fixture
def outcome(table):
    """Adds a line to the table; call it last in a test."""

    def add(injected: str, done: str, again: int, lost: str = "nothing") -> None:
        table.append(Outcome(injected, done, again, lost))

    return add


@pytest.fixture(scope="session")
def reference(tmp_path_factory, tiny_model_folder):
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("reference")
    run = Run(folder, job(folder, tiny_model_folder, **CHANGES))
    assert run.wait() == 0
    return folder


@pytest.fixture
def harmed(tmp_path, tiny_model_folder):
    """Starts a run like the reference, with changes; what is left of it is killed at the end of the test."""
    import contextlib

    import psutil

    started: list[Run] = []

    def begin(folder: Path = tmp_path, **changes) -> Run:
        started.append(Run(folder, job(folder, tiny_model_folder, **(CHANGES | changes))))
        return started[-1]

    yield begin
    for run in started:
        with contextlib.suppress(psutil.Error):
            run.known()
        for pid in [run.process.pid, *(pid for pid, _ in run._known)]:
            with contextlib.suppress(OSError):
                os.kill(pid, 9)
