"""The training loss: logits only where labels are, and never all of them at once.

With a vocabulary of 262,144 (Gemma) the logits of 1,000 label tokens and their gradient are 2 GiB in float32. The output
layer is frozen, so each chunk's gradient for the hidden states is formed in the forward pass and its logits are dropped.

References:
    Hsu et al., "Liger kernel", 2024, arXiv:2410.10989, section 3.2. PyTorch's own `linear_cross_entropy` (2.13) does the same
    but returns the sum in the model's precision: 484.0 for 484.15 in bf16.
"""

from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from lora_select.data.labels.tokens import IGNORED, label_loss, unwrapped

CHUNK_ELEMENTS = 2**24
"""Logits that are held at once: 64 MiB in float32."""
TOLERANCE = 1e-3


@final
class LabelHead(nn.Linear):
    """An output layer that answers with the summed loss, of shape (1, 1), while targets are set.

    It stands inside the model, so that whatever wraps the model (PEFT, the gathering of weights by ZeRO-3) sees an ordinary
    forward pass through an ordinary layer.
    """

    targets: Tensor | None = None

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's own name)
        """Logits (..., vocabulary), or the loss of hidden states of shape (rows, places, width) against `targets`.

        `targets` has shape (rows, places); where it is -100 no logits are formed.
        """
        if self.targets is None:
            return super().forward(input)
        wanted = self.targets.ne(IGNORED)
        return summed_loss(input[wanted], self.weight, self.targets[wanted], self.bias)[None, None]


def summed_loss(hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None = None) -> Tensor:
    """Sum of -log softmax(W h + b) at the targets in nats, chunk by chunk; softmax in float32 (float64 for float64).

    Args:
        hidden: (n, d).
        weight: (vocabulary, d), frozen.
        targets: (n,) int64.
        bias: (vocabulary,) or None, frozen.
    """
    return _Chunked.apply(hidden, weight, targets, bias)  # pyright: ignore[reportReturnType]


@final
class _Chunked(torch.autograd.Function):
    """d loss / d h = W^T (softmax(W h + b) - onehot(target)), formed chunk by chunk while the logits are there."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None) -> Tensor:
        size = max(16, CHUNK_ELEMENTS // weight.shape[0])
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        exact = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        total = torch.zeros((), dtype=exact, device=hidden.device)
        for low in range(0, len(hidden), size):
            part, target = hidden[low : low + size], targets[low : low + size, None]
            logits = functional.linear(part, weight, bias).to(exact)
            normaliser = logits.logsumexp(1, keepdim=True)
            total += (normaliser - logits.gather(1, target)).sum()
            if gradient is not None:
                logits.sub_(normaliser).exp_()  # softmax, in place
                logits.scatter_add_(1, target, torch.full_like(target, -1, dtype=exact))
                torch.mm(logits.to(weight.dtype), weight, out=gradient[low : low + size])
        ctx.gradient = gradient
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        gradient, ctx.gradient = ctx.gradient, None
        return (gradient * grad_outputs[0]).to(gradient.dtype), None, None, None


def enable(model: Any) -> bool:
    """Turn the model's output layer into a :class:`LabelHead`; False where it is no plain linear layer that stays frozen."""
    head = unwrapped(model).get_output_embeddings()
    if type(head) is not nn.Linear or head.weight.requires_grad:
        return False
    head.__class__ = LabelHead
    if _agrees(model):
        return True
    head.__class__ = nn.Linear  # something comes after the output layer: soft-capping, a scale
    return False


def disable(head: Any) -> None:
    """Back to the plain output layer."""
    head.__class__ = nn.Linear


def training_loss(model: Any, batch: dict[str, Any]) -> Tensor:
    """Summed loss of all labels of a batch in nats, no shape.

    Args:
        model: the model, DeepSpeed's engine around it or not.
        batch: padded or packed rows.
    """
    head = unwrapped(model).get_output_embeddings()
    targets = batch["labels"][:, 1:]
    places = targets.ne(IGNORED).any(dim=0).nonzero().squeeze(-1)
    if not isinstance(head, LabelHead) or not len(places):
        return label_loss(model, batch)[0].sum()
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    head.targets = targets[:, places]
    try:
        return model(**inputs, use_cache=False, logits_to_keep=places).logits.squeeze()
    finally:
        head.targets = None


def _agrees(model: Any) -> bool:
    """Whether the loss is that of the plain output layer on a few tokens."""
    device = next(model.parameters()).device
    ids = torch.arange(2, 10, device=device)[None]
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            plain, ours = float(label_loss(model, batch)[0].sum()), float(training_loss(model, batch))
    except (RuntimeError, TypeError, ValueError, IndexError):  # the head's answer is not what comes after it expects
        return False
    finally:
        model.train(was_training)
    return abs(plain - ours) <= TOLERANCE * abs(plain)
