"""Losses of several forms of one adapter on one loaded base: the same rows, units resampled, divergence from the base."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from lora_select.data.labels.tokens import IGNORED, TokenRow, collate
from lora_select.evaluation.metrics import exact_match, generate, has_one_form
from lora_select.evaluation.model_losses import label_counts, row_losses
from lora_select.records import finite
from lora_select.retention.forms import Update, applied

BATCH_ROWS = 4
LOSS_BATCH = 16
ASKED, SPARE = 16, 8
"""Questions of a reference set that are answered, and tokens that an answer may be longer than the longest expected one."""
Arms = Mapping[str, Mapping[str, Update]]


def losses(model: Any, updates: Mapping[str, Update], rows: Sequence[TokenRow], pad_id: int) -> tuple[float, ...]:
    """Summed loss of each row in nats with the updates on the base model."""
    with applied(model, updates):
        return tuple(row_losses(model, rows, pad_id, LOSS_BATCH, str(next(iter(model.parameters())).device)))


@final
@dataclass(frozen=True)
class Judged:
    """Summed loss of each row in nats of the base and of each arm; `kl` the summed KL(base || arm) of each row over its label tokens, where asked."""

    labels: tuple[int, ...]
    base: tuple[float, ...]
    arms: Mapping[str, tuple[float, ...]]
    kl: Mapping[str, tuple[float, ...]]


def judge(
    model: Any,
    arms: Arms,
    rows: Sequence[TokenRow],
    pad_id: int,
    *,
    divergence: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Judged:
    """Base and arms on the same rows; the base's distribution is made once a batch. Without `divergence` there is no `kl`.

    Raises:
        RuntimeError: a loss is not finite.
    """
    import torch

    device = next(iter(model.parameters())).device
    order = sorted(range(len(rows)), key=lambda index: len(rows[index].input_ids))
    base = [0.0] * len(rows)
    found = {name: [0.0] * len(rows) for name in arms}
    kl = {name: [0.0] * len(rows) for name in arms if divergence}
    with torch.inference_mode():
        for begin in range(0, len(order), BATCH_ROWS):
            chosen = order[begin : begin + BATCH_ROWS]
            batch = {name: t.to(device) for name, t in collate([rows[index] for index in chosen], pad_id).items()}
            targets = batch.pop("labels")[:, 1:]
            wanted = targets.ne(IGNORED)
            before = _log_probabilities(model, batch, wanted)
            _note(base, chosen, wanted, -_picked(before, targets, wanted))
            for name, updates in arms.items():
                with applied(model, updates):
                    after = _log_probabilities(model, batch, wanted)
                _note(found[name], chosen, wanted, -_picked(after, targets, wanted))
                if divergence:
                    _note(kl[name], chosen, wanted, (before.exp() * (before - after)).sum(-1))
            if progress:
                progress(min(begin + BATCH_ROWS, len(order)), len(order))
    for name, values in {"the base model": base, **found}.items():
        finite(math.fsum(values), f"the loss of {name} on reference text")
    return Judged(
        label_counts(rows),
        tuple(base),
        {name: tuple(values) for name, values in found.items()},
        {name: tuple(values) for name, values in kl.items()},
    )


def exact(
    model: Any, arms: Arms, rows: Sequence[TokenRow], tokenizer: Any, *, most: int = ASKED
) -> dict[str, tuple[float, ...]]:
    """Whether the greedy answer of `base` and of each arm is exact (1 or 0), on the first rows of a chat; empty where answers have no one right form.

    A row asks where its labels are one piece: what stands before them is the prompt.
    """
    places = [(row, found) for row in rows if (found := _answer(row)) is not None][:most]
    expected = [tokenizer.decode(list(row.input_ids[a:b]), skip_special_tokens=True) for row, (a, b) in places]
    if len(places) < 2 or not has_one_form(expected):
        return {}
    prompts = [tokenizer.decode(list(row.input_ids[:a])) for row, (a, _) in places]
    longest = max(b - a for _, (a, b) in places)
    found = {}
    for name, updates in {"base": {}, **arms}.items():
        with applied(model, updates):
            given = generate(model, tokenizer, prompts, max_new_tokens=longest + SPARE, batch_size=BATCH_ROWS)
        found[name] = tuple(float(exact_match(text, answer)) for text, answer in zip(expected, given, strict=True))
    return found


def _answer(row: TokenRow) -> tuple[int, int] | None:
    """Begin and end of the one piece of labels after a prompt; None where there are several, or no prompt."""
    labels = [place for place, wanted in enumerate(row.label_mask) if wanted]
    if not labels or labels[0] < 2 or labels[-1] - labels[0] + 1 != len(labels):
        return None
    return labels[0], labels[-1] + 1


def _log_probabilities(model: Any, batch: Any, wanted: Any) -> Any:
    """(label tokens, vocabulary) in float32."""
    logits = model(**batch, use_cache=False).logits[:, :-1]
    return logits[wanted].float().log_softmax(-1)


def _picked(logs: Any, targets: Any, wanted: Any) -> Any:
    return logs.gather(-1, targets[wanted][:, None]).squeeze(-1)


def _note(totals: list[float], chosen: Sequence[int], wanted: Any, values: Any) -> None:
    """Add each row's sum of `values`, which follow one another as the true entries of `wanted` do."""
    whole = wanted.new_zeros(wanted.shape, dtype=values.dtype)
    whole[wanted] = values
    for index, value in zip(chosen, whole.sum(1).tolist(), strict=True):
        totals[index] = value
