"""Rows packed end to end into one sequence: nothing is padding, and no row sees another.

The linear layers, most of the work, run on the whole sequence; attention runs row by row, so its cost is the sum of the
rows' squared lengths and not the square of the sum. Positions restart at 0 with every row.

References:
    Krell et al., "Efficient sequence packing without cross-contamination", 2021, arXiv:2107.02027.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from lora_select.data.labels.tokens import IGNORED, TokenRow, label_loss

NAME = "packed_sdpa"
CHECK_LENGTHS = (7, 12, 5)
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}
"""Largest relative difference that rounding explains; a row that sees another is off by about 1."""


def collate_packed(rows: Sequence[TokenRow]) -> dict[str, Any]:
    """Lay rows end to end.

    Args:
        rows: at least one row.

    Returns:
        `input_ids`, `position_ids` and `labels`, int64 of shape (1, all tokens); `cu_seq_lens_q` and `_k`, the rows' bounds,
        int32 of shape (rows + 1,); `max_length_q` and `_k`. A row's first token is never a label.
    """
    lengths = torch.tensor([len(row.input_ids) for row in rows])
    bounds = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]).to(torch.int32)
    ids = torch.tensor([token for row in rows for token in row.input_ids])
    mask = torch.tensor([place > 0 and label for row in rows for place, label in enumerate(row.label_mask)])
    longest = int(lengths.max())
    return {
        "input_ids": ids[None],
        "position_ids": torch.cat([torch.arange(int(length)) for length in lengths])[None],
        "labels": torch.where(mask, ids, IGNORED)[None],
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": bounds,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def enable(model: Any) -> None:
    """Let the model attend row by row; batches without bounds are treated as SDPA treats them.

    Raises:
        ValueError: the architecture does not take an attention function.
    """
    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)


def enabled(model: Any) -> bool:
    """Whether the model attends row by row."""
    return model.config._attn_implementation == NAME


def disable(model: Any) -> None:
    """Back to plain SDPA; a model without it was never changed."""
    if has_sdpa(model):
        model.set_attn_implementation("sdpa")


def has_sdpa(model: Any) -> bool:
    """Whether transformers runs the architecture by SDPA; gpt-oss's attention sinks have no place in it, and would be lost in silence."""
    return bool(getattr(model, "_supports_sdpa", True))


def packed_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    cu_seq_lens_q: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """SDPA on each row of a packed sequence.

    Args:
        module: the attention layer.
        query: (1, heads, tokens, head size); key and value likewise.
        key: see `query`.
        value: see `query`.
        attention_mask: what the model made for the whole sequence, bool of shape (1, 1, tokens, tokens); each row uses its
            own diagonal block of it, so that windows and other rules of the architecture hold.
        cu_seq_lens_q: the rows' bounds; None for a batch that is not packed.
        kwargs: passed on.
    """
    if cu_seq_lens_q is None or len(cu_seq_lens_q) == 2:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    if attention_mask is None:  # transformers tells packed rows by their positions only where no cache is kept
        raise ValueError("packed rows came without a mask; call the model with use_cache=False")
    parts = [
        sdpa_attention_forward(
            module, query[:, :, low:high], key[:, :, low:high], value[:, :, low:high], block, **kwargs
        )[0]
        for low, high, block in _blocks(attention_mask, cu_seq_lens_q)
    ]
    return torch.cat(parts, dim=1), None


def _blocks(mask: Tensor, bounds: Tensor) -> list[tuple[int, int, Tensor | None]]:
    """`(first, past the last, mask)` of each row; None where the block is plainly causal, for the faster kernel.

    Kept on the mask, which all layers of a forward pass share.
    """
    found = getattr(mask, "packed_blocks", None)
    if found is None:
        places = bounds.tolist()
        found = []
        for low, high in itertools.pairwise(places):
            block = mask[:, :, low:high, low:high]
            causal = torch.ones(high - low, high - low, dtype=torch.bool, device=mask.device).tril()
            plain = mask.dtype == torch.bool and bool(block.eq(causal).all())
            found.append((low, high, None if plain else block.contiguous()))
        mask.packed_blocks = found  # pyright: ignore[reportAttributeAccessIssue]
    return found


def refusal(model: Any, vocab_size: int) -> str | None:
    """Why this model must not be packed, or None: three short rows are run packed and one by one.

    Losses and the gradients of all trained parameters must agree. The model is left as it was found, in the packed
    attention when there is no reason against it.

    Args:
        model: the model that will be trained, adapter included.
        vocab_size: random ids are drawn below it.
    """
    if not has_sdpa(model):
        return f"rows are padded, not packed: {type(model).__name__} has no SDPA attention"
    try:
        enable(model)
        difference = largest_difference(model, vocab_size)
    except Exception as error:  # an architecture may refuse in any way; each one means rows stay padded
        disable(model)
        return f"rows are padded, not packed: {type(model).__name__} does not take packed rows ({_short(error)})"
    limit = TOLERANCE[next(p.dtype for p in model.parameters() if p.is_floating_point())]
    if difference <= limit:
        return None
    disable(model)
    return (
        f"rows are padded, not packed: packed and single rows differ by {difference:.1g} of the gradient "
        f"(rounding explains {limit:g}), so this architecture lets packed rows see one another"
    )


def largest_difference(model: Any, vocab_size: int, lengths: Sequence[int] = CHECK_LENGTHS) -> float:
    """Largest relative difference of losses and gradients between packed and single rows, no unit.

    All tokens but each row's first are labels, so that every position counts. The model's mode, gradients and the state of
    the random numbers are left as they were.
    """
    generator = torch.Generator().manual_seed(0)
    rows = []
    for number, length in enumerate(lengths):
        ids = torch.randint(0, vocab_size, (length,), generator=generator).tolist()
        rows.append(TokenRow(str(number), tuple(ids), (False,) + (True,) * (length - 1)))
    trained = [p for p in model.parameters() if p.requires_grad]
    was_training = model.training
    model.eval()
    try:
        singles = _loss_and_gradient(model, collate_packed(rows[:1]), trained)
        for row in rows[1:]:
            for total, part in zip(singles, _loss_and_gradient(model, collate_packed([row]), trained), strict=True):
                total += part
        together = _loss_and_gradient(model, collate_packed(rows), trained)
    finally:
        model.train(was_training)
    return max(_relative(together[:1], singles[:1]), _relative(together[1:], singles[1:]))


def _loss_and_gradient(model: Any, batch: dict[str, Any], trained: list[Any]) -> list[Tensor]:
    """The summed loss and its gradient for each trained parameter; as they are, for a copy in double can be gigabytes."""
    device = trained[0].device
    moved = to_device(batch, device)
    if len(batch["cu_seq_lens_q"]) == 2:  # a single row is run as any other batch, not by the code under test
        moved = {name: moved[name] for name in ("input_ids", "labels")}
        moved["attention_mask"] = torch.ones_like(moved["input_ids"])
    loss = label_loss(model, moved)[0].sum()
    gradients = torch.autograd.grad(loss, trained, allow_unused=True)
    found = [torch.zeros_like(p) if g is None else g for g, p in zip(gradients, trained, strict=True)]
    return [loss.detach(), *found]


def to_device(batch: dict[str, Any], device: Any) -> dict[str, Any]:
    """The batch with its tensors on `device`."""
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}


def _relative(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """Norm of the difference over the norm, of all tensors together."""
    difference = math.hypot(*(float((a - b).norm()) for a, b in zip(found, wanted, strict=True)))
    scale = math.hypot(*(float(b.norm()) for b in wanted))
    return difference / scale if scale else difference


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
