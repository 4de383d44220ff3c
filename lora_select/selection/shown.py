"""Where the learning rate was shown: a model, rows or a plan unlike those that its constants come from are named in the decision itself."""

from lora_select.records import Constraints, DatasetProfile, Spectra
from lora_select.selection.calibration import LONG_STEPS, Calibration
from lora_select.selection.candidates import Candidate
from lora_select.selection.learning_rate import lora_displacement

APART = 3.0
"""A number beyond the shown ones by more than this factor is unlike them."""
UNSHOWN = "This learning rate was never shown on "
"""How the sentence begins."""


def never_shown(
    candidate: Candidate, profile: DatasetProfile, spectra: Spectra, inputs: Constraints, constants: Calibration
) -> tuple[str, ...]:
    """One sentence that names what is unlike: a model's size, how far LoRA moves it, the planned steps, too few rows; none where nothing is.

    Args:
        candidate: the choice; LoRA's displacement on its layers counts.
        profile: for the training rows.
        spectra: for the model's parameters; 0 says nothing.
        inputs: for the planned steps.
        constants: with what was shown; 0 says nothing.
    """
    (small, large), (least, most) = constants.parameters, constants.displacements
    moved, rows, steps = lora_displacement(candidate), profile.train.trained, inputs.planned_steps
    found = []
    if _outside(spectra.model_parameters, small, large):
        found.append(
            f"a model of {_count(spectra.model_parameters)} parameters (shown: {_count(small)} to {_count(large)})"
        )
    if _outside(moved, least, most):
        found.append(f"a model that LoRA's step displaces by {moved:.2g} (shown: {least:.2g} to {most:.2g})")
    if _outside(steps, constants.steps, LONG_STEPS):
        found.append(f"{steps:,} steps (shown: {constants.steps} to {LONG_STEPS:g})")
    if 0 < rows < constants.rows / APART:
        found.append(f"as few as {rows} rows (shown: {constants.rows})")
    if not found:
        return ()
    return (f"{UNSHOWN}{', nor on '.join(found)}. A race (`selection.race_budget=3`) tries three of them here.",)


def _outside(value: float, low: float, high: float) -> bool:
    return bool(value and high) and not low / APART <= value <= high * APART


def _count(parameters: float) -> str:
    """In millions or billions.

    >>> _count(90_752), _count(134_515_008), _count(7_241_732_096)
    ('90,752', '135 M', '7.2 B')
    """
    if parameters < 1e6:
        return f"{parameters:,.0f}"
    return f"{parameters / 1e9:.2g} B" if parameters >= 1e9 else f"{parameters / 1e6:.3g} M"
