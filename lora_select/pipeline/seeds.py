"""The same plan with other seeds: beside the line, for a gate that need not assume how far seeds differ."""

from lora_select.errors import InputError, require
from lora_select.evaluation.seed_noise import FEWEST_SEEDS
from lora_select.pipeline import line
from lora_select.pipeline.run import Run
from lora_select.pipeline.stage import Outcome
from lora_select.pipeline.stages import judge, train
from lora_select.records import SeedNoise
from lora_select.tracking.names import LABELS


def measure(run: Run, seeds: int) -> Outcome[SeedNoise]:
    """How far trainings of the run's plan differ that differ in their seed alone; the run's own is the first of them.

    What retention would do to the adapters is left out.

    Raises:
        InputError: fewer than three seeds, or what :func:`finetune` refuses.
    """
    require("scipy", "gate", "`noise`")
    if seeds < FEWEST_SEEDS:
        raise InputError(f"--seeds {seeds} is too few to tell a spread; give {FEWEST_SEEDS} or more")
    chosen, planned = line.plan(run)
    adapters = {run.config.seed: line.trained(run, chosen, planned, "adapter").ref}
    for seed in range(run.config.seed + 1, run.config.seed + seeds):
        again = run.do(train.with_seed, f"plan-seed-{seed}", plan=planned.ref, seed=seed)
        adapters[seed] = line.trained(run, chosen, again, f"adapter-seed-{seed}").ref
    return run.do(
        judge.noise,
        LABELS["SeedNoise"],
        adapters={str(seed): ref for seed, ref in adapters.items()},
        dataset=chosen.measured.dataset.ref,
        profile=chosen.measured.profile.ref,
        base=run.base,
        run=run.key,
        device=run.machine.device,
        quantize=run.config.base_model.quantize,
    )
