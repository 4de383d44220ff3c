"""Hooks that hand every linear layer's inputs and output gradients to a reader, with the base frozen.

The graph is made to flow by requiring a gradient on the input embeddings' output; no parameter ever gets one.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import final

import torch
from torch import Tensor, nn

from lora_select.errors import InputError


@final
class SharedInput:
    """One input tensor, kept once for all layers that read it (q, k, v; gate, up), and its products, computed once.

    Attributes:
        rows: (tokens, n) float32, padding left out.
        weights: (tokens,) 1 where the token counts for activation statistics, 0 at the first token of a row: an
            attention sink, whose activations can be a thousand times the others'.
    """

    def __init__(self, x: Tensor, mask: Tensor | None):
        covering = mask if mask is not None and x.shape[:-1] == mask.shape else None
        self._keep = None if covering is None else _kept(covering)
        self.rows = self.select(x)
        self.weights = torch.ones(len(self.rows), device=x.device)
        if covering is not None:
            counted = ~_first(covering).flatten()
            self.weights = (counted if self._keep is None else counted[self._keep]).float()
        self._products: dict[int, Tensor] = {}
        self._moments: tuple[Tensor, Tensor, Tensor] | None = None

    def select(self, tensor: Tensor) -> Tensor:
        """The rows (tokens, width) of a tensor (..., width) with the input's leading shape; padding left out."""
        flat = tensor.detach().flatten(0, -2)
        return (flat if self._keep is None else flat[self._keep]).float()

    def times(self, test: Tensor) -> Tensor:
        """`rows @ test`, computed once per test matrix."""
        if id(test) not in self._products:
            self._products[id(test)] = self.rows @ test
        return self._products[id(test)]

    def moments(self, test: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Weighted sums over tokens: x x^T test (n, columns) (all of x x^T without `test`), x (n,), ||x||^2 ()."""
        if self._moments is None:
            seen = self.rows if test is None else self.times(test)
            norms = torch.linalg.vector_norm(self.rows, dim=1).square()
            self._moments = (
                self.rows.T @ (seen * self.weights[:, None]),
                self.weights @ self.rows,
                (norms * self.weights).sum(dtype=torch.float64),
            )
        return self._moments


Reader = Callable[[str, SharedInput, Tensor, Tensor], None]
"""Called in the backward pass with layer name, input, output (tokens, m) and output gradient (tokens, m)."""


@final
class Capture:
    """What the hooks know of the microbatch in flight: its mask, its inputs, how often each layer was called."""

    def __init__(self, reader: Reader):
        self._reader = reader
        self._mask: Tensor | None = None
        self._inputs: dict[int, tuple[Tensor, SharedInput]] = {}
        self._order: list[tuple[str, SharedInput]] = []
        self.calls: dict[str, int] = {}

    def start(self, mask: Tensor | None) -> None:
        """Forget the last microbatch and begin one with attention mask (rows, length)."""
        self._mask, self._inputs, self._order, self.calls = mask, {}, [], {}

    def forward(self, name: str, x: Tensor, y: Tensor) -> None:
        """Keep the input of a layer and wait for its output gradient."""
        self.calls[name] = self.calls.get(name, 0) + 1
        if id(x) not in self._inputs:  # x itself is kept: its id must not be given to another tensor
            self._inputs[id(x)] = (x, SharedInput(x, self._mask))
        shared = self._inputs[id(x)][1]
        self._order.append((name, shared))
        if not y.requires_grad:
            return
        output = y.detach()  # not y: a hook that holds its own tensor is a cycle the collector cannot see

        def arrived(gradient: Tensor) -> None:
            self._reader(name, shared, shared.select(output), shared.select(gradient))

        y.register_hook(arrived)

    def first_non_finite(self) -> str | None:
        """The first layer of this microbatch's forward pass whose input holds NaN or infinity."""
        for name, shared in self._order:
            if not bool(torch.isfinite(shared.rows).all()):
                return name
        return None


@contextmanager
def capturing(model: nn.Module, layers: Mapping[str, nn.Module], reader: Reader) -> Iterator[Capture]:
    """Hook `layers` of `model`; inside, base weights are frozen and dropout is off. Everything is put back after.

    Args:
        model: a model with `get_input_embeddings()`.
        layers: by name, each a linear map of its first argument.
        reader: gets inputs and output gradients, during the backward pass.

    Raises:
        InputError: the model has no input embeddings to start the graph from.
    """
    embeddings = getattr(model, "get_input_embeddings", lambda: None)()
    if embeddings is None:
        raise InputError(f"{type(model).__name__} has no input embeddings; the spectral pass needs a language model")
    capture = Capture(reader)
    flags = {parameter: parameter.requires_grad for parameter in model.parameters()}
    training = model.training
    with ExitStack() as stack:
        hooks = [module.register_forward_hook(_forward_hook(capture, name)) for name, module in layers.items()]
        hooks.append(embeddings.register_forward_hook(_start_graph))
        for hook in hooks:
            stack.callback(hook.remove)
        stack.callback(model.train, training)
        for parameter, flag in flags.items():
            stack.callback(parameter.requires_grad_, flag)
        model.eval()
        model.requires_grad_(False)
        yield capture


def _forward_hook(capture: Capture, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    return lambda _module, inputs, output: capture.forward(name, inputs[0], output)


def _start_graph(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output if output.requires_grad else output.detach().requires_grad_()


def _kept(mask: Tensor) -> Tensor | None:
    flat = mask.flatten().bool()
    return None if bool(flat.all()) else flat.nonzero().squeeze(-1)


def _first(mask: Tensor) -> Tensor:
    valid = mask.bool()
    return valid & (valid.cumsum(-1) == 1)
