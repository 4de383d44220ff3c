"""Short trainings in one process, one adapter after another on one loaded base: what a race runs and a benchmark counts.

The model, the batches, the loss, the optimizer and the schedule are those of the ranks; DeepSpeed and checkpoints are left out.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lora_select.data.tokens import TokenRow
from lora_select.initialization.portable import subtracts
from lora_select.records import AdapterSpec, TrainingPlan
from lora_select.training.worker import batches, loss, model, optimizer, packing, preflight, sanity
from lora_select.training.worker.loop import learning_rate
from lora_select.training.worker.process import seed_micro_batch, seed_start


@contextlib.contextmanager
def adapted(base: Any, spec: AdapterSpec, plan: TrainingPlan, initial_factors: str | None = None) -> Iterator[Any]:
    """The adapter on a loaded base, ready to train; afterwards the base is, bit for bit, what it was.

    A start that takes B A out of the base changes its weights; they are kept beside the model meanwhile.

    Args:
        base: the loaded base model; no other adapter may be on it.
        spec: the adapter.
        plan: seed, packing.
        initial_factors: the file of a start that is not PEFT's own.
    """
    kept = _weights(base, spec) if subtracts(initial_factors) else {}
    seed_start(plan.seed)
    network = model.adapt(base, spec, plan, base.name_or_path, initial_factors).train()
    if plan.packing:
        packing.refusal(network, preflight.vocabulary(network))  # turns it on where the model takes it
    labelled = loss.enable(network)
    try:
        yield network
    finally:
        head = base.get_output_embeddings()
        network.unload()
        if labelled:
            loss.disable(head)
        packing.disable(base)
        _put_back(base, kept)
        base.eval().requires_grad_(False)


def train(
    network: Any,
    spec: AdapterSpec,
    plan: TrainingPlan,
    rows: Sequence[TokenRow],
    pad_id: int,
    report: Callable[[int], None] = lambda _: None,
) -> list[float]:
    """Do the plan's steps; returns the mean loss per label token of each, nats.

    Ends early when a loss is not finite or the run diverges: the list is then shorter than the plan, and its last entry is
    what was seen.

    Args:
        network: from :func:`adapted`.
        spec: names the optimizer.
        plan: of one process; rows are packed where the model was found to take it.
        rows: training rows.
        pad_id: of the tokenizer.
        report: called with the steps done.
    """
    import torch

    plan = dataclasses.replace(plan, packing=packing.enabled(network))
    made = optimizer.make_optimizer(network, spec, plan)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    device = str(trained[0].device)
    losses: list[float] = []
    for step in range(plan.total_steps):
        numbers = batches.rows_of_step(len(rows), plan.epochs, plan.effective_batch_size, plan.seed, step)
        chosen = [rows[number] for number in numbers]
        labels = sum(sum(row.label_mask) for row in chosen)
        optimizer.set_rate(made, learning_rate(plan, step))
        total = 0.0
        for slot, part in enumerate(part for part in batches.dealt(chosen, plan)[0] if part):
            seed_micro_batch(plan.seed, step, slot)
            nll = loss.training_loss(network, preflight.batch_of(part, plan, pad_id, device))
            (nll / labels).backward()
            total += float(nll.detach()) / labels
        norm = float(torch.nn.utils.clip_grad_norm_(trained, plan.max_grad_norm))
        losses.append(total)
        if not (math.isfinite(total) and math.isfinite(norm)) or sanity.diverging(losses):
            break
        made.step()
        made.zero_grad()
        report(step + 1)
    return losses


def _weights(base: Any, spec: AdapterSpec) -> dict[str, Any]:
    targeted = tuple(f".{name}.weight" for name in spec.target_modules)
    return {name: p.detach().clone() for name, p in base.named_parameters() if f".{name}".endswith(targeted)}


def _put_back(base: Any, kept: dict[str, Any]) -> None:
    import torch

    with torch.no_grad():
        for name, value in kept.items():
            base.get_parameter(name).copy_(value)
