"""MiniLM as a classifier with LoRA on its last layer: what the lower layers give is kept, so that a training costs a sixth.

Model, loss, optimizer and schedule are those of the sweep (`benchmarks.selection`); the rows are its tasks' as this machine gives them.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from benchmarks import plans
from benchmarks.pass_budget import measure
from benchmarks.selection.sweep import encoder, tasks
from lora_select.data.labels.tokens import TokenRow
from lora_select.data.microbatches import draw
from lora_select.records import AdapterSpec, TrainingPlan
from lora_select.spectral.linear_layers import linear_layers
from lora_select.training.worker.batches import total_steps
from lora_select.variants import named

R, BATCH = 16, 8
KNOWN: dict[tuple[int, ...], Tensor] = {}
"""Hidden states by a row's tokens: the lower layers are the same whatever is trained."""


@final
class LowerLayers(nn.Module):
    """In place of the embeddings: what the embeddings and all layers but the last give for a row, computed once."""

    def __init__(self, embeddings: nn.Module, layers: list[nn.Module], pad_id: int) -> None:
        super().__init__()
        self.lower, self.pad_id = [embeddings, *layers], pad_id  # a plain list: they are no part of what is adapted

    @property
    def word_embeddings(self) -> "LowerLayers":
        """Where the spectral pass begins its graph."""
        return self

    def forward(self, input_ids: Tensor, **_: Any) -> Tensor:
        """Hidden states of shape (rows, places, d); what stands after a row's tokens is 0 and masked later."""
        rows = [self._row(ids) for ids in input_ids.tolist()]
        made = torch.zeros(*input_ids.shape, rows[0].shape[-1])
        for place, row in enumerate(rows):
            made[place, : len(row)] = row
        return made

    @torch.no_grad()
    def _row(self, ids: list[int]) -> Tensor:
        while ids and ids[-1] == self.pad_id:
            ids = ids[:-1]
        key = tuple(ids)
        if key not in KNOWN:
            embeddings, *layers = self.lower
            hidden = embeddings(input_ids=torch.tensor([ids]))
            for layer in layers:
                hidden = layer(hidden)
                hidden = hidden[0] if isinstance(hidden, tuple) else hidden
            KNOWN[key] = hidden[0].clone()
        return KNOWN[key]


@final
@dataclass(frozen=True)
class Subject:
    """A task on the last layer. `moves` is LoRA's displacement at r 16, no unit."""

    model: Any
    pad_id: int
    train: tuple[TokenRow, ...]
    held_out: tuple[TokenRow, ...]
    moves: float

    def spec(self, rate: float, r: int = R, alpha: int | None = None) -> AdapterSpec:
        """LoRA on all linear maps of the last layer."""
        names = list(linear_layers(self.model))
        made = named("lora", r).spec(
            targets="all-linear",
            target_modules=tuple(names),
            learning_rate=rate,
            num_parameters=r,
            placed={"target_modules": names, "task_type": "CAUSAL_LM"},
        )
        if alpha is None:
            return made
        return dataclasses.replace(made, lora_alpha=alpha, peft_arguments={**made.peft_arguments, "lora_alpha": alpha})


def subject(name: str, count: int, held_out: int, *, shuffled: bool = False) -> Subject:
    """The task's first `count` training rows; labels dealt out anew over all rows where they are `shuffled`."""
    task = tasks.shuffled(tasks.find(name)) if shuffled else tasks.find(name)
    model, _, pad_id, rows, _ = encoder.loaded(task, count)
    *lower, last = model.encoder.layer
    model.embeddings = LowerLayers(model.embeddings, lower, pad_id)
    model.encoder.layer = nn.ModuleList([last])
    model.requires_grad_(False)
    batches = draw(rows.train, microbatches=4, size=2, seed=0, pad_id=pad_id)
    moves = list(measure(model, batches))[-1]
    return Subject(model, pad_id, rows.train, rows.held_out[:held_out], moves)


def plan(rate: float, seed: int, rows: int, epochs: float, *, batch: int = BATCH, steps: int = 0) -> TrainingPlan:
    """One process, fp32, cosine after a warm-up of a tenth, as the sweep has it; `steps` in place of those of the epochs."""
    steps = steps or total_steps(rows, epochs, batch, None)
    passes = max(epochs, steps * batch / rows)
    return plans.alone(rate=rate, seed=seed, steps=steps, epochs=passes, batch=batch, micro=batch)
