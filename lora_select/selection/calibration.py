"""Constants that were fitted and not derived, with the number of settings behind each; `calibration.json` is written by the oracle.

`python -m benchmarks.selection calibrate` fits them to the sweep; `lora-select calibrate` says how past runs came out against them.
"""

import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import final

from lora_select.records import from_json

FILE = Path(__file__).with_name("calibration.json")
LONG_STEPS, LONG_RATE = 780.0, 3e-4
"""The best constant rate of all-linear LoRA over 35 models, Tulu-3, 780 steps: regret 0.30 % of the loss."""
MODELS_APART = 6.0
QUARTER = 0.25
"""Share of the steps that `rung_shift` was fitted at."""


@final
@dataclass(frozen=True)
class Curve:
    """What the loss of a training at a quarter of its steps tells of its end: share taken off the base loss = `start` + `slope` x share lost so far.

    Least squares over `runs` trainings in `settings` settings; `sd` is that of the residuals. `lost` holds the smallest and the largest
    share that was seen, `steps` the fewest and the most planned steps for which it was shown.
    """

    start: float
    slope: float
    sd: float
    settings: int
    runs: int
    lost: tuple[float, float]
    steps: tuple[int, int]


@final
@dataclass(frozen=True)
class Calibration:
    """Fitted constants.

    `rate` is the geometric mean of LoRA's best rate over the settings, all of `steps` steps, with the standard deviation
    `rate_log_sd` of its logarithm; `displacement` is that of LoRA's displacements at r 16 (0: not known). `gain_share` is what LoRA takes off the base loss, as a share of it, with the standard deviation
    between settings. `rung_shift` is the best rate of a full run over that of a race's rung, by candidate the geometric mean.
    `displacement_power` is the power of the displacement ratio by which best rates of variants that move farther than LoRA fall
    below LoRA's; those of variants that move less far rise as the displacement says.
    `seed_sd_share` is the standard deviation between seeds over the loss. `settings` counts tasks x models x sizes.
    `parameters` of the smallest and the largest model, `displacements`, the smallest and the largest, and the fewest `rows` say where the
    learning rate was shown (0: not known).
    """

    source: str
    settings: int
    steps: int
    rate: float
    rate_log_sd: float
    gain_share: float
    gain_share_sd: float
    rung_shift: float
    rung_shift_log_sd: float
    displacement_power: float
    seed_sd_share: float
    displacement: float = 0.0
    parameters: tuple[int, int] = (0, 0)
    displacements: tuple[float, float] = (0.0, 0.0)
    rows: int = 0
    curve: Curve | None = None


@functools.cache
def shipped() -> Calibration:
    """The constants of this version."""
    return from_json(Calibration, FILE.read_text(encoding="utf-8"), place=FILE.name)


def tempered(factor: float, constants: Calibration) -> float:
    """Best rate over LoRA's from 1 / displacement: itself above 1, its fitted power below.

    What moves farther than LoRA does so at first, and less so later; VeRA and HiRA, which move a tenth to a fortieth as far, have
    best rates 10 to 100 times LoRA's (docs/log.md, 2026-11-29).

    Example:
        >>> known = Calibration("", 4, 24, 3e-3, 0.5, 0.5, 0.1, 0.5, 0.1, 0.5, 0.01)
        >>> tempered(1 / 16, known), tempered(16.0, known)
        (0.25, 16.0)
    """
    return factor if factor > 1 else factor**constants.displacement_power


def rate_shift(share: float, constants: Calibration) -> float:
    """Best rate of a full run over that of a probe of this share of its steps: a power law through the fitted one of a quarter.

    Example:
        >>> known = Calibration("", 4, 24, 3e-3, 0.5, 0.5, 0.1, 0.5, 0.1, 1.0, 0.01)
        >>> [rate_shift(share, known) for share in (1 / 16, 1 / 4, 1 / 2, 1.0)]
        [0.25, 0.5, 0.707, 1.0]
    """
    return float(f"{constants.rung_shift ** (math.log(share) / math.log(QUARTER)):.3g}")


def model_factor(displacement: float, constants: Calibration) -> float:
    """What a model on which LoRA moves by `displacement` does to its best rate in short runs: equal displacement, to the fitted power.

    1 where either displacement is not known; a factor beyond 6 between displacements is not trusted, the oracle's models lie 5 apart.

    Example:
        >>> known = Calibration("", 4, 24, 3e-3, 0.5, 0.5, 0.1, 1.0, 0.1, 0.5, 0.01, displacement=1.0)
        >>> [model_factor(displacement, known) for displacement in (0.0, 1.0, 4.0)]
        [1.0, 1.0, 0.5]
    """
    if not displacement or not constants.displacement:
        return 1.0
    ratio = min(MODELS_APART, max(1 / MODELS_APART, constants.displacement / displacement))
    return ratio**constants.displacement_power


def reference_rate(steps: int, constants: Calibration, displacement: float = 0.0) -> float:
    """LoRA's rate for a run of so many steps: a line in log steps and log rate through the fitted and the public anchor.

    Outside of them the nearer one is taken. The fitted anchor is moved to the model by :func:`model_factor`; the public one is of 35
    models, on which one rate served.

    Args:
        steps: planned.
        constants: the anchors.
        displacement: LoRA's on the model, no unit; 0 where it is not known.

    Example:
        >>> known = Calibration("", 4, 24, 3e-3, 0.5, 0.5, 0.1, 1.0, 0.1, 1.0, 0.01)
        >>> [reference_rate(steps, known) for steps in (10, 24, 137, 780, 5000)]
        [0.003, 0.003, 0.00095, 0.0003, 0.0003]
    """
    share = math.log(min(max(steps, constants.steps), LONG_STEPS) / constants.steps)
    share /= math.log(LONG_STEPS / constants.steps)
    short = constants.rate * model_factor(displacement, constants)
    rate = math.exp((1 - share) * math.log(short) + share * math.log(LONG_RATE))
    return float(f"{rate:.1e}")
