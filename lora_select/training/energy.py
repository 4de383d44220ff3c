"""Energy counters of the machine: NVIDIA's by `nvidia-ml-py`, the processor's by RAPL. Where there is none, nothing is claimed."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from pydantic import TypeAdapter

from lora_select.records import Energy, to_json, write_text

RAPL = Path("/sys/class/powercap")
JOULES_PER_KWH = 3.6e6
FILE = "energy.json"
EVERY_S = 30.0
"""A kill loses at most so much of what was used; a counter that wraps does so after minutes at the least."""
_ENERGY: TypeAdapter[Energy] = TypeAdapter(Energy)


@final
@dataclass(frozen=True)
class Reading:
    """Counters at one moment, in joules by name, and where each wraps around (0: it does not)."""

    joules: Mapping[str, float] = field(default_factory=dict)
    wraps: Mapping[str, float] = field(default_factory=dict)


def read(rapl: Path = RAPL) -> Reading:
    """All counters that can be read now; RAPL's usually need root. Empty where the machine tells nothing."""
    joules, wraps = _processor(rapl)
    graphics = _graphics()
    return Reading({**joules, **graphics}, {**wraps, **dict.fromkeys(graphics, 0.0)})


def between(before: Reading, after: Reading) -> Energy | None:
    """Energy used between two readings of the same machine, None where no counter is in both.

    RAPL's counters wrap after a quarter of an hour of load or more; one wrap is undone, so read every few minutes.

    >>> between(Reading({"cpu": 3.6e6}, {"cpu": 0.0}), Reading({"cpu": 7.2e6}, {"cpu": 0.0})).kwh
    1.0
    """
    common = sorted(set(before.joules) & set(after.joules))
    if not common:
        return None
    total = 0.0
    for name in common:
        used = after.joules[name] - before.joules[name]
        total += used if used >= 0 else used + before.wraps.get(name, 0.0)
    return Energy(
        total / JOULES_PER_KWH, "measured", f"counters of {', '.join(common)} (whole devices, other load included)"
    )


def add(first: Energy | None, second: Energy | None) -> Energy | None:
    """The sum of two intervals, such as those of a training that was resumed."""
    if first is None or second is None:
        return first or second
    return Energy(first.kwh + second.kwh, first.source, first.basis)


@final
class Meter:
    """Adds what the counters say to `energy.json` of a training folder, over all attempts and resumed starts."""

    def __init__(self, folder: Path, rapl: Path = RAPL) -> None:
        self._file, self._rapl = folder / FILE, rapl
        self._last, self._time = read(rapl), time.monotonic()

    def tick(self, *, now: bool = False) -> None:
        """Look at the counters if it is time, or `now`; a machine without any writes nothing."""
        if not self._last.joules or (not now and time.monotonic() - self._time < EVERY_S):
            return
        here = read(self._rapl)
        total = add(used(self._file.parent), between(self._last, here))
        self._last, self._time = here, time.monotonic()
        if total is not None:
            write_text(self._file, to_json(total))


def used(folder: Path) -> Energy | None:
    """What the training in a folder used so far, None where nothing was measured."""
    file = folder / FILE
    return _ENERGY.validate_json(file.read_bytes()) if file.is_file() else None


def _processor(rapl: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Packages only: cores and memory below a package are part of it."""
    joules, wraps = {}, {}
    for folder in sorted(rapl.glob("intel-rapl:*")):
        if folder.name.count(":") != 1:
            continue
        try:
            name = f"processor {(folder / 'name').read_text().strip()}"
            value = int((folder / "energy_uj").read_text()) / 1e6
            wrap = int((folder / "max_energy_range_uj").read_text()) / 1e6
        except (OSError, ValueError):  # root alone may read them on most systems
            continue
        joules[name], wraps[name] = value, wrap
    return joules, wraps


def _graphics() -> dict[str, float]:
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # no library, no driver
        return {}
    found: dict[str, float] = {}
    try:
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle: Any = pynvml.nvmlDeviceGetHandleByIndex(index)
            found[f"GPU {index}"] = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000
    except Exception:  # cards before Volta have no counter
        return {}
    finally:
        pynvml.nvmlShutdown()
    return found
