"""Curvature of the loss in a candidate adapter's parameters at its start: what its learning rate has to respect."""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lora_select import models
from lora_select.data.labels.tokens import IGNORED
from lora_select.diagnostics.curvature import PRODUCTS, Progress, largest_curvature
from lora_select.records import AdapterSpec, Curvature


class LabelLogits(nn.Module):
    """A model and one microbatch; called, the logits (N, C) at its N labels and nowhere else.

    Labels of shape (rows, length) belong to a causal language model (a token is predicted from those before it), labels of
    shape (rows,) to a sequence classifier; -100 is no label.
    """

    def __init__(self, model: nn.Module, batch: Mapping[str, Tensor]):
        super().__init__()
        self.model = model
        self._labels = batch["labels"]
        self._inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}

    def forward(self) -> Tensor:
        """The logits (N, C)."""
        if self._labels.ndim == 1:
            return self.model(**self._inputs).logits[self._labels != IGNORED]
        wanted = self._labels[:, 1:] != IGNORED
        places = wanted.any(dim=0).nonzero().squeeze(-1)
        if places.numel() == 0:
            return torch.empty(0, 2)
        inputs = {**self._inputs, "use_cache": False}
        if _keeps_logits(self.model):
            logits = self.model(**inputs, logits_to_keep=places).logits
        else:
            logits = self.model(**inputs).logits[:, places]
        return logits[wanted[:, places]]


def adapter_curvature(
    base: "str | Path | nn.Module",
    spec: AdapterSpec,
    batch: Mapping[str, Tensor],
    *,
    initial_factors: Path | None = None,
    products: int = PRODUCTS,
    seed: int = 0,
    progress: Progress | None = None,
) -> Curvature:
    """Largest Gauss-Newton eigenvalue in the parameters of `spec`'s adapter at its start, on one microbatch.

    Args:
        base: folder of the base model, loaded in float32; or a loaded model, which is left as it was found, at the price of a
            copy of the weights it adapts.
        spec: the adapter, built as training builds it.
        batch: as :func:`lora_select.data.labels.tokens.collate` makes it, on the model's device.
        initial_factors: the file of start factors that training would load, if any.
        products: most matrix-vector products.
        seed: of the adapter's random start and of the starting vector.
        progress: as for :func:`lora_select.diagnostics.curvature.largest_curvature`.

    Raises:
        InputError: nothing to train, no labels, or logits that are not finite.
    """
    model = base if isinstance(base, nn.Module) else models.load_model(str(base))
    torch.manual_seed(seed)
    with _adapted(model, spec, initial_factors) as adapted:
        return largest_curvature(LabelLogits(adapted, batch), products=products, seed=seed, progress=progress)


@contextmanager
def _adapted(model: nn.Module, spec: AdapterSpec, initial_factors: Path | None) -> Iterator[nn.Module]:
    """The model with the adapter on it; without it, and with its own weights and flags, afterwards."""
    import peft

    from lora_select.training.worker.model import start_from

    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    weights = {
        name: parameter.detach().clone()
        for name, parameter in model.named_parameters()
        if spec.adapts(name.rpartition(".")[0])
    }
    config = getattr(peft, spec.peft_class)(**spec.peft_arguments)
    with models.quiet_peft():
        adapted: Any = peft.get_peft_model(model, config)  # pyright: ignore[reportArgumentType]
    try:
        if initial_factors is not None:
            start_from(adapted, str(initial_factors), spec.scale)
        yield adapted
    finally:
        adapted.unload()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(flags[name])
                if name in weights:
                    parameter.copy_(weights[name])


def _keeps_logits(model: Any) -> bool:
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "logits_to_keep" in inspect.signature(inner.forward).parameters
