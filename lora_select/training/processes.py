"""Processes that must not outlive one another: who they are, whether they live, how they are ended."""

import contextlib
import os
import threading
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

Identity = tuple[int, float]
"""Process id and creation time: an id alone may have been given to another process since."""
POLL_SECONDS = 1.0
SUPERVISOR = "LORA_SELECT_SUPERVISOR"
"""The variable that tells a rank who its supervisor is: `pid:creation time`."""


def identity(pid: int | None = None) -> Identity:
    """Who the process is (this one when `pid` is None)."""
    process = psutil.Process(pid)
    return process.pid, process.create_time()


def alive(who: Identity) -> bool:
    """Whether that very process still runs."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(who[0])
        return abs(process.create_time() - who[1]) < 1.0 and process.status() != psutil.STATUS_ZOMBIE
    return False


def die_with(who: Identity) -> None:
    """End this process soon after `who` is gone, even when it was killed with -9."""

    def watch() -> None:
        while alive(who):
            time.sleep(POLL_SECONDS)
        os._exit(70)

    threading.Thread(target=watch, name="die-with-parent", daemon=True).start()


def descendants(who: Identity) -> list[Identity]:
    """All processes below `who`, also those that made sessions of their own."""
    if not alive(who):
        return []
    found = []
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(who[0]).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                found.append((child.pid, child.create_time()))
    return found


def stop(processes: Iterable[Identity], *, grace: float) -> None:
    """SIGTERM, wait up to `grace` seconds, SIGKILL what is left."""
    living = [who for who in processes if alive(who)]
    for who in living:
        with contextlib.suppress(psutil.Error):
            psutil.Process(who[0]).terminate()
            psutil.Process(who[0]).resume()  # a stopped process takes no signal but this and SIGKILL
    deadline = time.monotonic() + grace
    while any(alive(who) for who in living) and time.monotonic() < deadline:
        time.sleep(0.1)
    for who in living:
        if alive(who):
            with contextlib.suppress(psutil.Error):
                psutil.Process(who[0]).kill()


def memory_kills() -> int:
    """How many processes the kernel has killed for memory since boot, in any container of this machine."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/vmstat").read_text(encoding="ascii").splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0
