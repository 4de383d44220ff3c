"""Energy counters of the machine: NVIDIA's by `nvidia-ml-py`, the processor's by RAPL. Where there is none, nothing is claimed."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from lora_select.records import Energy

RAPL = Path("/sys/class/powercap")
JOULES_PER_KWH = 3.6e6


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

    RAPL's counters wrap after some hours of load; one wrap is undone, so read at least once an hour.

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
