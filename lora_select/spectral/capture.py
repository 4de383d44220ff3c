"""Hooks that hand every linear layer's inputs and output gradients to a reader, with the base frozen.

The graph is made to flow by requiring a gradient on the input embeddings' output; no parameter ever gets one. A layer's input is
kept by autograd itself (saved by an identity on its output), so gradient checkpointing and offloading treat it as they treat any
saved tensor: it is recomputed, or fetched, when its output gradient is there, and each layer is read once a microbatch.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn

from lora_select.errors import InputError

SHARED_INPUTS = 2
"""Inputs whose products are kept: in the backward pass q, k, v follow one another, and so do gate and up."""


@final
class TokenMask:
    """Which tokens of a microbatch count.

    Attributes:
        keep: indices of the tokens that are no padding, None when there is none.
        counted: (tokens,) float32, 1 where the token counts for activation statistics, 0 at the first token of a row: an attention
            sink, whose activations can be a thousand times the others'.
    """

    def __init__(self, mask: Tensor):
        valid = mask.bool()
        flat = valid.flatten()
        self.shape = mask.shape
        self.keep = None if bool(flat.all()) else flat.nonzero().squeeze(-1)
        first = valid & (valid.cumsum(-1) == 1)
        counted = ~first.flatten()
        self.counted = (counted if self.keep is None else counted[self.keep]).float()


@final
class SharedInput:
    """One input tensor (..., n) and its products, computed once for all layers that read it (q, k, v; gate, up).

    Attributes:
        rows: (tokens, n) float32, padding left out.
        weights: (tokens,) see :class:`TokenMask`.
    """

    def __init__(self, x: Tensor, mask: TokenMask | None):
        self.rows = select(x, mask)
        self.weights = torch.ones(len(self.rows), device=x.device)
        if mask is not None and x.shape[:-1] == mask.shape:
            self.weights = mask.counted
        self._product: tuple[Tensor, Tensor] | None = None
        self._moments: tuple[Tensor | None, Moments] | None = None

    def times(self, test: Tensor) -> Tensor:
        """`rows @ test`, computed once for all layers that bring the same test matrix."""
        if self._product is None or self._product[0] is not test:
            self._product = test, self.rows @ test
        return self._product[1]

    def moments(self, test: Tensor | None, chosen: slice) -> "Moments":
        """Weighted sums over the chosen tokens, computed once for all layers that bring the same test matrix.

        Returns:
            x x^T test (n, columns), all of x x^T without `test`; x (n,); ||x||^2 (); weights ().
        """
        if self._moments is None or self._moments[0] is not test:
            rows, weights = self.rows[chosen], self.weights[chosen]
            seen = rows if test is None else rows @ test
            norms = torch.linalg.vector_norm(rows, dim=1).square()
            energy, tokens = (norms * weights).sum(dtype=torch.float64), weights.sum(dtype=torch.float64)
            self._moments = test, (rows.T @ (seen * weights[:, None]), weights @ rows, energy, tokens)
        return self._moments[1]


Moments = tuple[Tensor, Tensor, Tensor, Tensor]


def select(tensor: Tensor, mask: TokenMask | None) -> Tensor:
    """The rows (tokens, width) of a tensor (..., width) as float32, padding left out where the mask covers it."""
    flat = tensor.detach().flatten(0, -2)
    if mask is not None and mask.keep is not None and tensor.shape[:-1] == mask.shape:
        flat = flat[mask.keep]
    return flat.float()


Reader = Callable[[str, SharedInput, Tensor], None]
"""Called in the backward pass with layer name, input, and output gradient (tokens, m)."""
Watcher = Callable[[str, Tensor, TokenMask | None], None]
"""Called in the forward pass with layer name, output (..., m), and the mask."""


@final
class Capture:
    """What the hooks know of the microbatch in flight: its mask, recent inputs, how often each layer was called."""

    def __init__(self, reader: Reader, watcher: Watcher):
        self._reader, self._watcher = reader, watcher
        self._mask: TokenMask | None = None
        self._inputs: list[tuple[Tensor, SharedInput]] = []
        self._waiting: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self.calls: dict[str, int] = {}

    def start(self, mask: Tensor | None) -> None:
        """Forget the last microbatch and begin one with attention mask (rows, length)."""
        self._mask = None if mask is None else TokenMask(mask)
        self._inputs, self._waiting, self.calls = [], {}, {}

    def forward(self, name: str, x: Tensor, y: Tensor) -> Tensor | None:
        """Watch the output and put the tap on it; a recomputation inside the backward pass is not a call."""
        if torch._C._current_graph_task_id() == -1:
            self.calls[name] = self.calls.get(name, 0) + 1
            self._watcher(name, y.detach(), self._mask)
        return _Tap.apply(y, x.detach(), self, name) if y.requires_grad else None

    def arrived(self, name: str, x: Tensor, gradient: Tensor) -> None:
        """One call's output gradient is there; a layer that is called several times is read once, all its tokens together."""
        with torch.autocast(x.device.type, enabled=False):
            if self.calls.get(name, 1) == 1:
                self._reader(name, self._shared(x), select(gradient, self._mask))
                return
            waiting = self._waiting.setdefault(name, [])
            waiting.append((select(x, self._mask), select(gradient, self._mask)))
            if len(waiting) == self.calls[name]:
                inputs, gradients = (torch.cat(parts) for parts in zip(*self._waiting.pop(name), strict=True))
                self._reader(name, SharedInput(inputs, None), gradients)

    def _shared(self, x: Tensor) -> SharedInput:
        for known, shared in self._inputs:  # `known` is kept: its memory cannot become another tensor's
            if known.data_ptr() == x.data_ptr() and known.shape == x.shape and known.stride() == x.stride():
                return shared
        self._inputs = [*self._inputs[1 - SHARED_INPUTS :], (x, SharedInput(x, self._mask))]
        return self._inputs[-1][1]


class _Tap(torch.autograd.Function):
    """The identity on a layer's output y; its backward pass hands (x, dL/dy) to the capture."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, capture: Capture, name: str) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(x)
        ctx.capture, ctx.name = capture, name
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.capture.arrived(ctx.name, ctx.saved_tensors[0], gradient)
        return gradient, None, None, None


@contextmanager
def capturing(model: nn.Module, layers: Mapping[str, nn.Module], reader: Reader, watcher: Watcher) -> Iterator[Capture]:
    """Hook `layers` of `model`; inside, base weights are frozen and dropout is off. Everything is put back after.

    Args:
        model: a model with `get_input_embeddings()`.
        layers: by name, each a linear map of its first argument.
        reader: gets inputs and output gradients, during the backward pass.
        watcher: gets outputs, during the forward pass.

    Raises:
        InputError: the model has no input embeddings to start the graph from.
    """
    embeddings = getattr(model, "get_input_embeddings", lambda: None)()
    if embeddings is None:
        raise InputError(f"{type(model).__name__} has no input embeddings; the spectral pass needs a language model")
    capture = Capture(reader, watcher)
    with ExitStack() as stack:
        stack.enter_context(frozen(model))
        hooks = [module.register_forward_hook(_forward_hook(capture, name)) for name, module in layers.items()]
        hooks.append(embeddings.register_forward_hook(_start_graph))
        for hook in hooks:
            stack.callback(hook.remove)
        yield capture


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No parameter requires a gradient and dropout is off, inside; as before, outside.

    Layers that checkpoint only do so in training mode, so they alone are left in it, unless they apply dropout themselves.
    """
    flags = {parameter: parameter.requires_grad for parameter in model.parameters()}
    modes = {module: module.training for module in model.modules()}
    try:
        model.requires_grad_(False)
        for module in model.modules():
            module.training = bool(getattr(module, "gradient_checkpointing", False)) and not _drops(module)
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)


def first_non_finite(layers: Mapping[str, nn.Module], run: Callable[[], object]) -> str | None:
    """The first of `layers` whose input holds NaN or infinity when `run` runs the model, None if there is none."""
    found: list[str] = []

    def look(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if not found and not bool(torch.isfinite(inputs[0]).all()):
                found.append(name)

        return hook

    with ExitStack() as stack:
        for name, module in layers.items():
            stack.callback(module.register_forward_pre_hook(look(name)).remove)
        with torch.no_grad():
            run()
    return found[0] if found else None


def _drops(module: nn.Module) -> bool:
    """Whether a layer holds a dropout rate of its own, as a number."""
    rates = ("attention_dropout", "dropout", "dropout_prob", "activation_dropout", "hidden_dropout")
    return any(isinstance(rate := getattr(module, name, None), float) and rate > 0 for name in rates)


def _forward_hook(capture: Capture, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor | None]:
    return lambda _module, inputs, output: capture.forward(name, inputs[0], output)


def _start_graph(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output if output.requires_grad else output.detach().requires_grad_()
