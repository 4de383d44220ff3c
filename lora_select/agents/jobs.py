"""Commands that take long, each a process of its own: started, looked at, cancelled."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, final

from lora_select.errors import InputError
from lora_select.records import write_text

FOLDER = ".lora-select-jobs"
GRACE_SECONDS = 10.0
TAIL_CHARACTERS = 4000
State = Literal["running", "done", "failed", "cancelled"]


@final
@dataclass(frozen=True)
class JobState:
    """Where a job stands. `exit_code` is None while it runs; `output` is the end of what it printed, `error` of its errors."""

    job: str
    command: str
    state: State
    exit_code: int | None
    seconds: float
    output: str
    error: str


@final
@dataclass
class _Job:
    process: subprocess.Popen[bytes]
    folder: Path
    command: str
    began: float
    ended: float | None = None
    cancelled: bool = False


@final
@dataclass
class Jobs:
    """The jobs of one server; those that still run end with it."""

    root: Path
    _known: dict[str, _Job] = field(default_factory=dict)

    def start(self, arguments: Sequence[str]) -> JobState:
        """Run `lora-select` with these arguments in a session of its own; its output goes to files below the root."""
        name = uuid.uuid4().hex[:12]
        folder = self.root / FOLDER / name
        folder.mkdir(parents=True)
        write_text(folder / "command.json", json.dumps(list(arguments)) + "\n")
        with (folder / "stdout").open("wb") as out, (folder / "stderr").open("wb") as err:
            process = subprocess.Popen(
                [sys.executable, "-m", "lora_select.cli.main", *arguments],
                cwd=self.root,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        self._known[name] = _Job(process, folder, "lora-select " + " ".join(arguments), time.monotonic())
        return self.state(name)

    def state(self, name: str) -> JobState:
        """Look at a job.

        Raises:
            InputError: this server has started no such job.
        """
        job = self._job(name)
        code = job.process.poll()
        if code is not None and job.ended is None:
            job.ended = time.monotonic()
        state: State = (
            "running" if code is None else "cancelled" if job.cancelled else "done" if code == 0 else "failed"
        )
        seconds = (job.ended or time.monotonic()) - job.began
        return JobState(
            name,
            job.command,
            state,
            code,
            round(seconds, 1),
            _tail(job.folder / "stdout"),
            _tail(job.folder / "stderr"),
        )

    def cancel(self, name: str) -> JobState:
        """End a job and all that it started: asked first, killed after some seconds. One that has ended is left as it is.

        Raises:
            InputError: this server has started no such job.
        """
        job = self._job(name)
        if job.process.poll() is None:
            job.cancelled = True
            _signal(job, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                job.process.wait(GRACE_SECONDS)
            _signal(job, signal.SIGKILL)  # what it started may have outlived it
            job.process.wait()
        return self.state(name)

    def close(self) -> None:
        """Cancel whatever still runs."""
        for name in self._known:
            self.cancel(name)

    def _job(self, name: str) -> _Job:
        if name not in self._known:
            known = ", ".join(self._known) or "none yet"
            raise InputError(f"this server has no job {name!r}; its jobs: {known}")
        return self._known[name]


def _signal(job: _Job, number: signal.Signals) -> None:
    try:
        os.killpg(job.process.pid, number)
    except ProcessLookupError:
        return


def _tail(file: Path) -> str:
    with file.open("rb") as stream:
        stream.seek(max(0, file.stat().st_size - TAIL_CHARACTERS))
        return stream.read().decode(errors="replace")
