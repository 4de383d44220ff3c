"""Records of the race: short trainings of a few candidates, made before the decision."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Trial:
    """One short training of a candidate at a rate, with a schedule of its own `steps`.

    `held_out` is the summed loss in nats of each row of the race's own held-out rows, empty when the run diverged;
    `reference` is nats per token of general text, None where it diverged. `train` holds nats per label token, a step each.
    """

    key: str
    learning_rate: float
    steps: int
    seed: int
    held_out: tuple[float, ...]
    reference: float | None
    train: tuple[float, ...]
    tokens: int
    seconds: float


@dataclass(frozen=True)
class Race:
    """All probes of a race, in the order in which they ran.

    The held-out rows are taken from the training rows and are no evaluation rows: what the race saw is never what the adapter is
    judged by. `labels` are the label tokens of each. `cost` is what the probes trained on over what the planned training will,
    in tokens; `budget` is the most it was allowed, kept in steps. `dropped` says why a probe did not go to the longer rung, by `<key> <rate>`.
    """

    profile_digest: str
    spectra_digest: str
    budget: float
    planned_steps: int
    rungs: tuple[int, ...]
    labels: tuple[int, ...]
    base_held_out: tuple[float, ...]
    base_reference: float
    probes: tuple[Trial, ...]
    dropped: Mapping[str, str]
    cost: float
    seconds: float
    notes: tuple[str, ...]
