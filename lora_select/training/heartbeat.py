"""Heartbeats: each rank says in one small file where it is; the watchdog, the launcher and a person read them."""

import contextlib
import json
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

FOLDER = "ranks"


@final
class Heartbeat:
    """Writes `ranks/rank-<n>.json`. It beats at every phase and micro-batch, from the thread that does the work.

    A thread of its own would go on beating while the work hangs.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        self._path = folder / FOLDER / f"rank-{rank}.json"
        self._path.parent.mkdir(exist_ok=True)
        self._fixed = {"rank": rank, "pid": os.getpid(), "host": socket.gethostname()}
        self.phase, self.step = "starting", 0

    def __call__(self, phase: str, step: int | None = None) -> None:
        """Say that `phase` begins; `step` counts from 1 and stays when it is not given."""
        self.phase, self.step = phase, self.step if step is None else step
        beat = self._fixed | {"phase": phase, "step": self.step, "time": time.time()}
        temporary = self._path.with_suffix(".tmp")
        with contextlib.suppress(OSError):  # a full disk is found by what must be written, not by a heartbeat
            temporary.write_text(json.dumps(beat) + "\n", encoding="utf-8")
            os.replace(temporary, self._path)


def read(folder: Path) -> list[Mapping[str, Any]]:
    """The last heartbeat of each rank, by rank."""
    found = []
    for path in (folder / FOLDER).glob("rank-*.json"):
        with contextlib.suppress(OSError, ValueError):
            found.append(json.loads(path.read_text(encoding="utf-8")))
    return sorted(found, key=lambda beat: beat["rank"])


def clear(folder: Path) -> None:
    """Forget the ranks of an earlier attempt."""
    for path in (folder / FOLDER).glob("*"):
        path.unlink(missing_ok=True)


def last(folder: Path) -> float:
    """When any rank last moved, in seconds since the epoch; 0 before the first heartbeat.

    Ranks wait for one another in every step, so when one hangs all of them stand still soon.
    """
    times = []
    for path in (folder / FOLDER).glob("rank-*.json"):
        with contextlib.suppress(OSError):
            times.append(path.stat().st_mtime)
    return max(times, default=0.0)


def laggard(folder: Path) -> str:
    """The rank that is furthest behind, in words."""
    beats = read(folder)
    if not beats:
        return "no rank got as far as its first heartbeat"
    behind = min(beats, key=lambda beat: beat["time"])
    return (
        f"rank {behind['rank']} (process {behind['pid']} on {behind['host']}) last moved in phase "
        f"`{behind['phase']}` of step {behind['step']}"
    )
