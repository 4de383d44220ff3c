"""The learning rate of a candidate: LoRA's rate for so many steps, moved so that the function moves as far as under LoRA."""

import math

from lora_select.selection.calibration import LONG_RATE, Calibration, reference_rate, shipped, tempered
from lora_select.selection.candidates import Candidate
from lora_select.spectral.statistics import ADAPTER_RANKS
from lora_select.variants import LoRA

LOWEST, HIGHEST = 1 / 30, 20.0
"""Bounds on 1 / displacement. Beyond the upper one best rates differ: of VeRA, at 35 to 41, they are 30 to 100 times LoRA's, of AdaLoRA, at 53, 10."""
REFERENCE_RANK = 16


def displacement_ratio(candidate: Candidate) -> float:
    """How much farther one sign step of the variant moves the function than LoRA's at the same rank; no unit.

    The geometric mean over layers of the ratio of displacements; 1 where none was measured. A rank that was not measured
    takes the nearest measured one, in which the ratio is close; a variant without rank is compared with LoRA at 16.
    """
    r = candidate.variant.r
    near = min(ADAPTER_RANKS, key=lambda rank: (abs(math.log(rank / (r or REFERENCE_RANK))), rank))
    ours, reference = f"{candidate.variant.name}@{near if r else 0}", f"{LoRA.name}@{near}"
    logs = [
        math.log(layer.displacements[ours] / layer.displacements[reference])
        for layer in candidate.layers
        if layer.displacements.get(ours, 0) > 0 and layer.displacements.get(reference, 0) > 0
    ]
    return math.exp(math.fsum(logs) / len(logs)) if logs else 1.0


def lora_displacement(candidate: Candidate) -> float:
    """LoRA's displacement at r 16 on the candidate's layers, the geometric mean; 0 where none was measured."""
    key = f"{LoRA.name}@{REFERENCE_RANK}"
    logs = [math.log(found) for layer in candidate.layers if (found := layer.displacements.get(key, 0)) > 0]
    return math.exp(math.fsum(logs) / len(logs)) if logs else 0.0


def published_rate(candidate: Candidate) -> float | None:
    """The published rate, for a variant that has one and no measured displacement."""
    measured = any(name.startswith(f"{candidate.variant.name}@") for name in candidate.layers[0].displacements)
    return None if measured else candidate.variant.reference_rate


def rate_factor(candidate: Candidate) -> float:
    """The candidate's rate over LoRA's for the same run: 1 over the displacement ratio, within bounds."""
    return min(HIGHEST, max(LOWEST, 1 / displacement_ratio(candidate)))


def rate_ratio(candidate: Candidate, constants: Calibration) -> float:
    """The best rate over LoRA's in the same run: by displacement to the fitted power, else the published one over LoRA's in long runs."""
    published = published_rate(candidate)
    return tempered(rate_factor(candidate), constants) if published is None else published / LONG_RATE


def learning_rate(candidate: Candidate, planned_steps: int, constants: Calibration | None = None) -> float:
    """LoRA's rate for so many steps on this model times :func:`rate_ratio`, in two significant digits."""
    known = constants or shipped()
    home = reference_rate(planned_steps, known, lora_displacement(candidate))
    return float(f"{home * rate_ratio(candidate, known):.1e}")
