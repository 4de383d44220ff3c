"""Second moments of layer inputs, streamed: Z = E[x x^T] over every token, not centred, first tokens included, padding left out.

Sums only are kept, so two halves of the rows, or two ranks, add up to the whole. Inputs that several layers read (q, k, v; gate, up) are
summed once. Up to `exact_width` the whole matrix is summed in float64; beyond it a sketch Y = sum x (x^T Omega), from which

    Z ~ V diag(values) V^T + c I

by Nystrom's formula, c the energy that the sketch missed spread over all directions.

References:
    Tropp, Yurtsever, Udell, Cevher (2017), *Fixed-rank approximation of a positive-semidefinite matrix from streaming data*.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from lora_select.data.labels.tokens import TokenRow, collate
from lora_select.errors import InputError

EXACT_WIDTH = 2048
"""Inputs up to this wide are summed whole: 32 MiB a matrix."""
SKETCH_COLUMNS = 512
RECENT = 3
"""Inputs that are remembered to recognise the next layer's as the same: q, k, v follow one another, and so do gate and up."""
BATCH_ROWS = 8
BLOCKS = 4
"""Of a symmetric sum, by rows: more blocks multiply less and copy more."""
LOUD = 20.0
"""Of the median token's energy: tokens above are few, and their products are formed in float64."""


@final
@dataclass
class InputSums:
    """Sums over the tokens of one input: `products` is x x^T (n, n), or x (x^T Omega) (n, k) beside `omega`; `energy` is ||x||^2."""

    products: Tensor
    energy: float
    tokens: int
    omega: Tensor | None = None

    @property
    def width(self) -> int:
        """The input's width n."""
        return self.products.shape[0]

    def add(self, rows: Tensor) -> None:
        """Add the tokens `rows` (tokens, n), float32.

        Loud tokens are multiplied in float64: the first token of every row alone can hold nearly all energy, and its rounding in float32 is as
        large as the small eigenvalues that decide.
        """
        energies = rows.square().sum(1)
        loud = energies > LOUD * energies.median()
        precise = rows[loud].to(self.products)
        quiet = rows[~loud]
        if self.omega is None:
            self.products.addmm_(precise.T, precise)
            _add_products(self.products, quiet)
        else:
            omega = self.omega.to(precise)
            self.products.addmm_(precise.T, precise @ omega)
            self.products += quiet.T @ (quiet @ self.omega)
        self.energy += float(energies.sum(dtype=torch.float64))
        self.tokens += len(rows)

    def merged(self, other: "InputSums") -> "InputSums":
        """The sums over both sets of tokens; sketches must come from the same test matrix, which their seed makes sure of."""
        return InputSums(
            self.products + other.products.to(self.products),
            self.energy + other.energy,
            self.tokens + other.tokens,
            self.omega,
        )


@final
@dataclass
class Moments:
    """Sums of every input of a model, by the first layer that reads it; `owner` names that layer for each layer.

    `unseen` names layers of which nothing can be said, with the reason.
    """

    sums: dict[str, InputSums] = field(default_factory=dict)
    owner: dict[str, str] = field(default_factory=dict)
    unseen: dict[str, str] = field(default_factory=dict)

    def of(self, layer: str) -> InputSums:
        """The sums of a layer's input."""
        return self.sums[self.owner[layer]]

    def merged(self, other: "Moments") -> "Moments":
        """Over both sets of rows.

        Raises:
            InputError: the two are not of the same layers.
        """
        if self.owner != other.owner:
            differ = sorted(set(self.owner.items()) ^ set(other.owner.items()))
            raise InputError(f"the two sets of moments are of different layers, first {differ[0][0]}; use one model")
        sums = {name: mine.merged(other.sums[name]) for name, mine in self.sums.items()}
        return Moments(sums, dict(self.owner), self.unseen | other.unseen)

    def joined(self, other: "Moments") -> "Moments":
        """Over the rows of both, of every layer that either has seen; of inputs that both have, the sums are added up."""
        sums = dict(other.sums)
        for name, mine in self.sums.items():
            known = sums.get(name)
            sums[name] = (
                mine.merged(known) if known is not None and known.products.shape == mine.products.shape else mine
            )
        return Moments(sums, other.owner | self.owner, self.unseen)

    @property
    def tokens(self) -> int:
        """Tokens of the input that saw the most (experts see fewer)."""
        return max((one.tokens for one in self.sums.values()), default=0)


def stream(
    model: Any,
    layers: Mapping[str, nn.Module],
    rows: Sequence[TokenRow],
    pad_id: int,
    *,
    exact_width: int = EXACT_WIDTH,
    columns: int = SKETCH_COLUMNS,
    seed: int = 0,
    progress: Any = None,
) -> Moments:
    """One forward pass over `rows`, and the sums of the inputs of `layers`.

    Args:
        model: the base model in evaluation mode, however its weights are stored or placed.
        layers: linear layers by name.
        rows: token rows; all positions count.
        pad_id: fills batches; padding is left out of the sums.
        exact_width: the widest input that is summed whole.
        columns: of the sketch beyond it.
        seed: of the sketch's test matrices; what is to be added up must use the same.
        progress: called with (rows done, rows).

    Raises:
        InputError: no rows, or an input that is not finite; names the layer.
    """
    if not rows:
        raise InputError("there are no rows to take second moments from")
    moments = Moments()
    order = sorted(rows, key=lambda row: len(row.input_ids))
    device = _device(model)
    with capturing(layers, moments, exact_width, columns, seed) as start, torch.inference_mode():
        for begin in range(0, len(order), BATCH_ROWS):
            batch = collate(order[begin : begin + BATCH_ROWS], pad_id)
            start(batch["attention_mask"].to(device))
            model(
                input_ids=batch["input_ids"].to(device),
                attention_mask=batch["attention_mask"].to(device),
                use_cache=False,
                **_few_logits(model, layers),
            )
            if progress:
                progress(min(begin + BATCH_ROWS, len(order)), len(order))
    for name, sums in moments.sums.items():
        if not (bool(sums.products.isfinite().all()) and sums.energy < float("inf")):
            raise InputError(
                f"the input of {name} holds NaN or infinity on these rows, so its second moment says nothing; load the model in "
                "float32 or bfloat16 (float16 overflows), or look at the rows"
            )
    return moments


@contextmanager
def capturing(
    layers: Mapping[str, nn.Module], moments: Moments, exact_width: int, columns: int, seed: int
) -> Iterator[Any]:
    """Hooks that add the inputs of `layers` to `moments`; yields a function that begins a batch with its attention mask."""
    recent: list[tuple[Tensor, str]] = []
    mask: list[Tensor] = []

    def start(attention_mask: Tensor) -> None:
        recent.clear()
        mask[:] = [attention_mask]

    def hook(name: str) -> Any:
        def look(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0]
            known = next((owner for seen, owner in recent if _same(seen, x)), name)
            if moments.owner.setdefault(name, known) != known:
                raise RuntimeError(
                    f"{name} shared its input with {moments.owner[name]} in one batch and not in another"
                )
            if known != name:
                return
            recent[:] = [*recent[1 - RECENT :], (x, name)]
            rows = _tokens(x, mask[0])
            if rows is None:
                moments.unseen[name] = "its input is not laid out as rows by tokens, so padding cannot be left out"
                return
            if name not in moments.sums:
                moments.sums[name] = _empty(rows, exact_width, columns, seed)
            moments.sums[name].add(rows)

        return look

    with ExitStack() as stack:
        for name, module in layers.items():
            stack.callback(module.register_forward_pre_hook(hook(name)).remove)
        yield start


def _same(a: Tensor, b: Tensor) -> bool:
    return a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride()


def _tokens(x: Tensor, mask: Tensor) -> Tensor | None:
    """The input's rows (tokens, n) in float32 without padding."""
    if x.shape[:-1] == mask.shape:
        return x.detach().float()[mask.to(x.device).bool()]
    return x.detach().float().flatten(0, -2) if bool(mask.all()) else None


def _empty(rows: Tensor, exact_width: int, columns: int, seed: int) -> InputSums:
    width = rows.shape[1]
    exact = torch.float32 if rows.device.type == "mps" else torch.float64
    if width <= max(exact_width, columns):
        return InputSums(rows.new_zeros(width, width, dtype=exact), 0.0, 0)
    generator = torch.Generator().manual_seed(seed * 1_000_003 + width)
    omega = torch.linalg.qr(torch.randn(width, columns, generator=generator))[0].to(rows)
    return InputSums(rows.new_zeros(width, columns, dtype=exact), 0.0, 0, omega)


def _add_products(products: Tensor, rows: Tensor) -> None:
    """Add x x^T of the tokens `rows` in blocks on and above the diagonal, and copy those below: five eighths of the multiplications."""
    width = len(products)
    step = -(-width // BLOCKS)
    for start in range(0, width, step):
        end = start + step
        products[start:end, start:] += rows[:, start:end].T @ rows[:, start:]
        products[end:, start:end] = products[start:end, end:].T


def _device(model: Any) -> Any:
    return next(iter(model.parameters())).device


def _few_logits(model: Any, layers: Mapping[str, nn.Module]) -> dict[str, Any]:
    """No logits but the last position's, unless the output layer itself is looked at."""
    import inspect

    head = getattr(model, "get_output_embeddings", lambda: None)()
    takes = "logits_to_keep" in inspect.signature(model.forward).parameters
    return {"logits_to_keep": 1} if takes and all(module is not head for module in layers.values()) else {}


def save(moments: Moments, file: Path) -> None:
    """Write the sums (no rows): what a later training needs so as not to undo this one.

    The test matrices of sketches are written too. A second moment can reveal which directions the inputs had, not the rows.
    """
    import json

    from safetensors.torch import save_file

    tensors = {f"{name}|products": sums.products.contiguous() for name, sums in moments.sums.items()}
    tensors |= {
        f"{name}|omega": sums.omega.contiguous() for name, sums in moments.sums.items() if sums.omega is not None
    }
    facts = {
        "owner": moments.owner,
        "unseen": moments.unseen,
        "tokens": {name: sums.tokens for name, sums in moments.sums.items()},
        "energy": {name: sums.energy for name, sums in moments.sums.items()},
    }
    save_file(tensors, file, metadata={"moments": json.dumps(facts, sort_keys=True)})


def load(file: Path) -> Moments:
    """What :func:`save` wrote.

    Raises:
        InputError: the file holds something else.
    """
    import json

    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as opened:
            facts = json.loads((opened.metadata() or {})["moments"])
            held = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise InputError(
            f"{file} holds no second moments (such as `retention.keep_moments` and `lora-select retain --keep-moments` write)"
        ) from error
    sums = {
        name: InputSums(held[f"{name}|products"], facts["energy"][name], tokens, held.get(f"{name}|omega"))
        for name, tokens in facts["tokens"].items()
    }
    return Moments(sums, facts["owner"], facts["unseen"])
