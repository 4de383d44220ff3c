"""Whether examples in the prompt do what a training would: measured before the spectral pass, and handed to the evaluation."""

from typing import Any

from lora_select.errors import InputError
from lora_select.pipeline import source_digests
from lora_select.pipeline.run import Run
from lora_select.pipeline.stage import Outcome
from lora_select.pipeline.stages import prepare
from lora_select.records import Dataset, DatasetProfile, FewShot
from lora_select.report.verdict import before_training


def judging(run: Run, device: str) -> dict[str, Any]:
    """What the evaluation measures, and how, on a device."""
    config = run.config
    told = config.evaluation.model_dump(exclude={"compare_plain_lora"})
    return told | {"seed": config.seed, "device": device, "quantize": config.base_model.quantize}


def few_shot(
    run: Run, dataset: Outcome[Dataset], profile: Outcome[DatasetProfile], *, trains: bool
) -> Outcome[FewShot] | None:
    """The untrained model with examples in its prompt, None where `evaluation.few_shot` asks for none.

    Raises:
        InputError: `trains`, the examples are enough, and `selection.when_hopeless` ends a training that has nothing left to gain.
    """
    if not run.config.evaluation.few_shot:
        return None
    found = run.do(
        prepare.few_shot,
        "few_shot",
        dataset=dataset.ref,
        profile=profile.ref,
        base=run.base,
        options=judging(run, run.measuring.device),
        key_only=source_digests.of(run.sources, "metrics"),
    )
    if trains and found.record.enough and run.config.selection.when_hopeless == "stop":
        raise InputError(
            f"{' '.join(before_training(found.record))} `selection.when_hopeless: stop` ends here; `warn` trains all the same, and other "
            "held-out rows (`dataset.eval_source`) may leave something to train for"
        )
    return found
