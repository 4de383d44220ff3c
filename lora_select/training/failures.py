"""Why a training attempt ended: a rank's own account, and what the launcher concludes when a rank could give none."""

import contextlib
import errno
import json
import re
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import final

from lora_select.training import heartbeat

OUT_OF_MEMORY = "out of memory"
DIVERGED = "diverged"
RANK_LOST = "rank lost"
STUCK = "no progress"
DISK_FULL = "disk full"
NO_EFFECT = "no effect"
STOPPED = "stopped"
ERROR = "error"

STUCK_CODE = 75
ORPHANED_CODE = 76
LAUNCHER_CODE = 77
"""Exit codes of the supervisor: no progress, its parent is gone, torchrun was killed by a signal."""
FULL_BYTES = 1 << 20
"""Less free disk than this is a full disk: a rank could then not even write why it ended."""
LOG_LINES = 15

_MEMORY = re.compile(r"out of memory|can't allocate memory|Cannot allocate memory|bad_alloc", re.IGNORECASE)
_DISK = re.compile(r"No space left on device|Disk quota exceeded", re.IGNORECASE)
_TIMEOUT = re.compile(
    r"Timed out waiting|timed? ?out.*(recv|send|operation)|collective operation timeout", re.IGNORECASE
)
_PEER = re.compile(r"Connection (closed|reset|refused)|Broken pipe|Socket closed|remote process exited", re.IGNORECASE)
_KILLED = re.compile(r"exitcode\s*:\s*-(\d+)")
SIGTERM = str(int(signal.SIGTERM))
_EXCEPTION = re.compile(r"(\[rank\d+\]: ?)?[\w.]*(Error|Exception|InputError|TrainingError)\b")


@final
class TrainingError(RuntimeError):
    """What a rank found out about its own training; `kind` is one of this module's classes."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Failure:
    """Why an attempt ended: its class, the step it was at (from 1; 0 before the first) and a sentence."""

    kind: str
    step: int
    message: str


@dataclass(frozen=True)
class Ending:
    """What the launcher saw of an attempt.

    The supervisor's exit code, where in the log the attempt began, and how many processes the kernel killed for memory
    meanwhile.
    """

    code: int
    log_start: int = 0
    memory_kills: int = 0


def kind_of(error: BaseException) -> str:
    """The class of an exception in a rank."""
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, TrainingError):
        return error.kind
    if isinstance(error, MemoryError) or _MEMORY.search(text):
        return OUT_OF_MEMORY
    if _DISK.search(text) or (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)):
        return DISK_FULL
    if _TIMEOUT.search(text):
        return STUCK
    return RANK_LOST if _PEER.search(text) else ERROR


def report(folder: Path, rank: int, heart: heartbeat.Heartbeat, error: BaseException) -> None:
    """Leave a rank's account of its end beside its heartbeat."""
    account = {"kind": kind_of(error), "step": heart.step, "phase": heart.phase, "rank": rank}
    account["message"] = f"{type(error).__name__}: {error}"[:2000]
    with contextlib.suppress(OSError):  # on a full disk the launcher looks at the disk itself
        (folder / heartbeat.FOLDER / f"failure-{rank}.json").write_text(json.dumps(account) + "\n", encoding="utf-8")


def diagnose(folder: Path, log: Path, ending: Ending) -> Failure:
    """The failure of an attempt. Accounts of ranks come before signs, and a rank's own trouble before a lost peer's."""
    accounts = _accounts(folder)
    step = max([int(b["step"]) for b in heartbeat.read(folder)] + [a["step"] for a in accounts], default=0)
    for kind in (
        OUT_OF_MEMORY,
        DISK_FULL,
        DIVERGED,
        NO_EFFECT,
        STUCK,
    ):  # torchrun kills the rank that others waited for
        for account in accounts:
            if account["kind"] == kind:
                return Failure(kind, account["step"], f"rank {account['rank']}: {account['message']}")
    found = _of_signs(folder, log, ending, step, told=bool(accounts)) or _of_accounts(accounts, step)
    return found or Failure(ERROR, step, _last_words(_log_since(log, ending.log_start), ending.code))


def _of_signs(folder: Path, log: Path, ending: Ending, step: int, *, told: bool) -> Failure | None:
    """What exit codes, the log and the disk say. Where a rank told its own end, SIGTERM is torchrun's to the others, and no cause."""
    if ending.code == STUCK_CODE:
        return Failure(STUCK, step, f"no rank moved; {heartbeat.laggard(folder)}")
    if ending.code == ORPHANED_CODE:
        return Failure(STOPPED, step, "the process that started it is gone")
    if ending.code == LAUNCHER_CODE:
        return Failure(RANK_LOST, step, "torchrun was killed by a signal")
    signals = _KILLED.findall(_log_since(log, ending.log_start))
    killed = next((number for number in signals if not (told and number == SIGTERM)), None)
    if ending.memory_kills and (killed or ending.code < 0):
        return Failure(OUT_OF_MEMORY, step, "the kernel killed a process for memory")
    if shutil.disk_usage(folder).free < FULL_BYTES:
        return Failure(DISK_FULL, step, f"no space is left in {folder}")
    if killed:
        return Failure(RANK_LOST, step, f"a rank was killed by signal {killed}")
    if ending.code < 0:
        return Failure(RANK_LOST, step, f"the supervisor was killed by signal {-ending.code}")
    if ending.code > 128:
        return Failure(STOPPED, step, f"the supervisor was told to stop by signal {ending.code - 128}")
    return None


def _of_accounts(accounts: list[dict], step: int) -> Failure | None:
    """An unknown error first: peers that lost it only say so."""
    for kind in (ERROR, STUCK, RANK_LOST):
        for account in accounts:
            if account["kind"] == kind:
                return Failure(kind, step, f"rank {account['rank']}: {account['message']}")
    return None


def _accounts(folder: Path) -> list[dict]:
    found = []
    for path in sorted((folder / heartbeat.FOLDER).glob("failure-*.json")):
        with contextlib.suppress(OSError, ValueError):
            found.append(json.loads(path.read_text(encoding="utf-8")))
    return found


def _log_since(log: Path, start: int) -> str:
    try:
        with log.open("rb") as stream:
            stream.seek(start)
            return stream.read().decode(errors="replace")
    except OSError:
        return ""


def _last_words(text: str, code: int) -> str:
    lines = text.splitlines()
    errors = [line for line in lines if _EXCEPTION.match(line)]
    shown = "\n  ".join(errors[-2:] or lines[-LOG_LINES:])
    return f"the ranks ended with code {code}\n  {shown}"
