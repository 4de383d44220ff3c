"""What each command of the line ends with: its stages, with their records."""

from dataclasses import dataclass
from typing import final

from lora_select.pipeline.stage import Outcome
from lora_select.records import (
    Adapter,
    Dataset,
    DatasetProfile,
    Decision,
    Evaluation,
    FewShot,
    Gate,
    Promotion,
    Race,
    ReloadCheck,
    Report,
    Retention,
    Spectra,
    TrainingPlan,
)


@final
@dataclass(frozen=True)
class Measured:
    """What `analyze` ends with."""

    dataset: Outcome[Dataset]
    gate: Outcome[Gate]
    profile: Outcome[DatasetProfile]
    spectra: Outcome[Spectra]


@final
@dataclass(frozen=True)
class Chosen:
    """What is measured and decided; `race` is None where no budget pays for one, `few_shot` where no examples were asked for."""

    measured: Measured
    few_shot: Outcome[FewShot] | None
    race: Outcome[Race] | None
    decision: Outcome[Decision]


@final
@dataclass(frozen=True)
class Recommended:
    """What `recommend` ends with: the choice, and the plan of a training by another trainer."""

    chosen: Chosen
    plan: Outcome[TrainingPlan]


@final
@dataclass(frozen=True)
class Finetuned:
    """What `finetune` ends with. `adapter` is as it was trained, `served` what retention left of it (the same where it changed nothing).

    `retention` is None where it is off, no rows were kept to choose by or the adapter cannot be filtered, `promotion` where there is no registry.
    """

    chosen: Chosen
    plan: Outcome[TrainingPlan]
    adapter: Outcome[Adapter]
    proof: Outcome[ReloadCheck]
    retention: Outcome[Retention] | None
    served: Outcome[Adapter]
    evaluation: Outcome[Evaluation]
    promotion: Outcome[Promotion] | None
    report: Outcome[Report]
