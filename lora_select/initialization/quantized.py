"""LoftQ's start, for a quantised base: the factors take up the largest part of what quantisation lost."""

import importlib
from typing import TYPE_CHECKING

from lora_select.errors import InputError
from lora_select.initialization.linalg import principal_factors
from lora_select.initialization.weights import fitting_weights
from lora_select.models import QUANTIZATIONS
from lora_select.records import AdapterSpec

if TYPE_CHECKING:
    from torch import Tensor

    from lora_select.initialization import Factors, Source


def loftq(spec: AdapterSpec, source: "Source") -> "Factors":
    """The best rank-r approximation of W - Q(W) as s B A, Q the base's own quantisation: one iteration of the alternation.

    More iterations would quantise W - s B A in place of W, a base that nobody loads from the published weights.
    """
    if source.quantized_base is None:
        raise InputError(
            "LoftQ's start is the error of quantisation, and the base is not quantised; set base_model.quantize"
        )
    for layer, weight in fitting_weights(spec, source.base):
        lost = weight.float() - quantized(weight, source.quantized_base)
        yield layer, principal_factors(lost, spec.r, spec.scale)


def quantized(weight: "Tensor", kind: str) -> "Tensor":
    """Q(W) as bitsandbytes stores it, back in float32.

    Args:
        weight: (m, n).
        kind: `nf4` (blocks of 64, no double quantisation) or `int8` (absolute maximum per row).

    Raises:
        InputError: an unknown kind.
    """
    if kind not in QUANTIZATIONS:
        raise InputError(f"quantisation {kind!r} is unknown; known: {', '.join(QUANTIZATIONS)}")
    functional = importlib.import_module("bitsandbytes.functional")
    plain = weight.detach().float().contiguous()
    if kind == "nf4":
        return functional.dequantize_4bit(*functional.quantize_4bit(plain, quant_type="nf4")).float()
    stored, scales, _ = functional.int8_vectorwise_quant(plain.half())
    return functional.int8_vectorwise_dequant(stored, scales).float()
