"""What happens between building the model and the first step: packing is proven, and the heaviest micro-batch is run once.

Memory that does not suffice shows here, in the first seconds, and not at the step that happens to hold the longest rows.
"""

from typing import Any

import torch

from lora_select.data.labels.tokens import TokenRow, collate
from lora_select.errors import InputError
from lora_select.records import TrainingPlan
from lora_select.training.worker import batches, loss, packing


def make_ready(network: Any, rows: list[TokenRow], plan: TrainingPlan, pad_id: int, device: str) -> None:
    """Prepare the model that `model.build` made; it is left without gradients and the random numbers as they were.

    Raises:
        InputError: the plan packs rows and this model does not give the same loss and gradients with them.
    """
    devices = [torch.device(device)] if device.startswith("cuda") else []
    with torch.random.fork_rng(devices=devices):
        if plan.packing and (reason := packing.refusal(network, vocabulary(network))):
            raise InputError(f"{reason}; set `training.packing` to false or auto")
        loss.enable(network)
        if plan.zero_stage < 3:  # a model that is about to be split need not fit whole beside its activations
            run(network, batch_of(batches.heaviest(rows, plan), plan, pad_id, device))


def run(network: Any, batch: dict[str, Any]) -> None:
    """Forward and backward of one micro-batch; no gradient is kept."""
    loss.training_loss(network, batch).backward()
    for parameter in network.parameters():
        parameter.grad = None


def batch_of(part: list[TokenRow], plan: TrainingPlan, pad_id: int, device: str) -> dict[str, Any]:
    """A micro-batch on the device, packed or padded."""
    made = packing.collate_packed(part) if plan.packing else collate(part, pad_id)
    return packing.to_device(made, device)


def vocabulary(network: Any) -> int:
    """Ids that the model's embedding knows."""
    return int(network.get_input_embeddings().weight.shape[0])
