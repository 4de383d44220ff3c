"""The two-sided filter: the update is weighed in its outputs too, by K-FAC, and cut back to its rank in the task's metric.

    D* = argmin_D tr(Gt (D - D0) Zt (D - D0)^T) + lambda tr(Gr D Zr D^T)

with Gt, Gr the second moments of the loss's gradients at the layer's outputs. With Gt = L L^T, L^-1 Gr L^-T = Q diag(nu) Q^T and the same of Zt, Zr
(mu), the update's entry (i, j) in both bases is multiplied by 1 / (1 + lambda nu_i mu_j): rank grows, and its r leading singular triplets there are kept.

References:
    Martens, Grosse (2015), *Optimizing neural networks with Kronecker-factored approximate curvature*, for G and Z apart.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from lora_select.data.labels.tokens import IGNORED, TokenRow, collate
from lora_select.retention import forms
from lora_select.retention.filter import RIDGE, Pair, spread
from lora_select.retention.forms import Update
from lora_select.retention.moments import BATCH_ROWS, InputSums

SPARE, SWEEPS = 8, 4
"""Columns beyond the rank and power iterations of the randomised SVD."""


@final
@dataclass(frozen=True)
class Whitened:
    """Coordinates of one side: `into` (n, n) from the left of a column, `back` (n, n) out of them, `ratios` (n,) of reference over task."""

    into: Tensor
    back: Tensor
    ratios: Tensor


def output_moments(
    model: Any, updates: Mapping[str, Update], names: Sequence[str], rows: Sequence[TokenRow], pad_id: int
) -> dict[str, Tensor]:
    """G (m, m) of each layer, float64: sums over positions of g g^T over the number of label tokens, g in nats.

    Labels are sampled from the model's own distribution at the rows' label positions (the true Fisher), seed 0.

    Args:
        model: the base; its parameters need no gradient.
        updates: put on it meanwhile; none is the base itself.
        names: of the layers.
        rows: whose label positions count.
        pad_id: fills batches.
    """
    layers = forms.linear_modules(model)
    sums = {
        name: InputSums(torch.zeros(size, size, dtype=torch.float64), 0.0, 0) for name, size in _sizes(layers, names)
    }
    generator = torch.Generator().manual_seed(0)
    order = sorted(rows, key=lambda row: len(row.input_ids))
    labels = 0
    model.requires_grad_(False)
    with forms.applied(model, updates), ExitStack() as stack:
        mask: list[Tensor] = []
        for name in names:
            stack.callback(layers[name].register_forward_hook(_adding(sums[name], mask)).remove)
        start = model.get_input_embeddings().register_forward_hook(lambda _m, _i, output: output.requires_grad_())
        stack.callback(start.remove)
        for begin in range(0, len(order), BATCH_ROWS):
            batch = collate(order[begin : begin + BATCH_ROWS], pad_id)
            wanted = batch.pop("labels")[:, 1:].ne(IGNORED)
            mask[:] = [batch["attention_mask"].bool()]
            logs = model(**batch, use_cache=False).logits[:, :-1][wanted].float().log_softmax(-1)
            drawn = torch.multinomial(logs.detach().exp(), 1, generator=generator)
            (-logs.gather(-1, drawn).sum()).backward()
            labels += int(wanted.sum())
    return {name: one.products / labels for name, one in sums.items()}


def _sizes(layers: Mapping[str, Any], names: Sequence[str]) -> list[tuple[str, int]]:
    return [(name, int(layers[name].weight.shape[0])) for name in names]


def _adding(sums: InputSums, mask: list[Tensor]) -> Any:
    def hook(_module: Any, _inputs: Any, output: Tensor) -> None:
        output.register_hook(lambda gradient: sums.add(gradient.detach().float()[mask[0]]))

    return hook


def whitened(task: Tensor, reference: Tensor) -> Whitened:
    """Coordinates in which `task` is the identity and `reference` is diagonal; both (n, n), `task` definite."""
    low = torch.linalg.cholesky(task)
    inner = torch.linalg.solve_triangular(low, reference, upper=False)
    inner = torch.linalg.solve_triangular(low, inner.T, upper=False)
    values, vectors = torch.linalg.eigh((inner + inner.T) / 2)
    back = torch.linalg.solve_triangular(low.T, vectors, upper=True)
    return Whitened((low @ vectors).T.contiguous(), back, values.clamp(min=0))


@final
class TwoSided:
    """All layers in both eigenbases, made once; :meth:`at` gives the updates of a strength."""

    def __init__(
        self,
        updates: Mapping[str, Update],
        pairs: Mapping[str, Pair],
        layers: Mapping[str, Sequence[str]],
        outputs: tuple[dict[str, Tensor], dict[str, Tensor]],
    ) -> None:
        """`outputs`: Gt and Gr by layer; both are emptied on the way."""
        self.updates = updates
        one_sided, weighed = [0.0, 0.0], [0.0, 0.0]
        self.parts: dict[str, tuple[Tensor, Tensor, Tensor, Tensor, Tensor]] = {}
        for owner, names in layers.items():
            inner = whitened(pairs[owner].task, pairs[owner].reference)
            for name in names:
                task, reference = (side.pop(name) for side in outputs)
                ridge = RIDGE * task.diagonal().mean() * torch.eye(len(task), dtype=task.dtype)
                outer = whitened(task + ridge, reference)
                update = updates[name]
                assert update.b is not None
                left, right = outer.into @ update.b.double(), update.a.double() @ inner.into.T
                ratios = outer.ratios[:, None] * inner.ratios
                self.parts[name] = (left, right, ratios, outer.back, inner.back)
                own = spread(update.a, update.b, pairs[owner])
                energy = (left @ right).square()
                for sums, task_part, reference_part in (
                    (one_sided, own.task, own.reference),
                    (weighed, float(energy.sum()), float((energy * ratios).sum())),
                ):
                    sums[0] += task_part
                    sums[1] += reference_part
        self.unit = one_sided[1] / one_sided[0] * weighed[0] / weighed[1]

    def at(self, strength: float) -> dict[str, Update]:
        """Every layer's update at `strength`, of the rank that it had.

        In units in which the two terms of D0 stand to one another as they do in the one-sided filter, so that one search serves both.
        """
        return dict(self.updates) | {
            name: _truncated(*parts, strength * self.unit) for name, parts in self.parts.items()
        }


def _truncated(
    left: Tensor, right: Tensor, ratios: Tensor, output_back: Tensor, input_back: Tensor, strength: float
) -> Update:
    rank = left.shape[1]
    whole = (left @ right) / (1 + strength * ratios)
    torch.manual_seed(0)
    u, s, v = torch.svd_lowrank(whole, q=min(rank + SPARE, *whole.shape), niter=SWEEPS)
    root = s[:rank].sqrt()
    a, b = (input_back @ (v[:, :rank] * root)).T, output_back @ (u[:, :rank] * root)
    return Update(a.float().contiguous(), b.float().contiguous())
