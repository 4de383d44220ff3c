"""Start factors that PEFT lacks or builds otherwise, from the weights and the spectral record: no second pass over the data."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, final

from lora_select.errors import InputError
from lora_select.records import AdapterSpec

if TYPE_CHECKING:
    from torch import Tensor

SIDES = ("lora_A", "lora_B")
Factors = Iterator[tuple[str, "tuple[Tensor, Tensor]"]]
"""Layer names with A (r, n) and B (m, r)."""


@final
@dataclass(frozen=True)
class Source:
    """Where a start is computed from: the base model's folder, `spectra.safetensors`, and how the base is quantised."""

    base: Path
    tensors: Path
    quantized_base: str | None = None


def write_initialization(
    spec: AdapterSpec, base_path: Path, tensors: Path, out: Path, quantized_base: str | None = None
) -> Path | None:
    """Write `<layer>.lora_A` (r, n) and `<layer>.lora_B` (m, r), float32, for starts that are not PEFT's own.

    The file's metadata says `subtract_from_base`: `true` when scale * B A must be taken off the frozen weight, so that
    the function does not change at the start.

    Args:
        spec: the adapter; `spec.init` names the start.
        base_path: folder of the base model's safetensors.
        tensors: `spectra.safetensors`.
        out: file to write.
        quantized_base: `nf4`, `int8` or None; LoftQ's start depends on it.

    Returns:
        `out`, or None where PEFT makes the start.

    Raises:
        InputError: an unknown start, a targeted layer without a weight or without enough measured directions.
    """
    if spec.init == "default":
        return None
    starts = _starts()
    if spec.init not in starts:
        raise InputError(f"init {spec.init!r} is unknown; known: default, {', '.join(starts)}")
    make, subtract = starts[spec.init]
    found = {
        f"{layer}.{side}": factor.float().contiguous()
        for layer, pair in make(spec, Source(Path(base_path), Path(tensors), quantized_base))
        for side, factor in zip(SIDES, pair, strict=True)
    }
    if not found:
        raise InputError(f"no layer of {spec.init} factors ends with one of {', '.join(spec.target_modules)}")
    from safetensors.torch import save_file

    save_file(found, out, metadata={"subtract_from_base": "true" if subtract else "false"})
    return Path(out)


def changes_base(init: str) -> bool:
    """Whether a start takes scale * B A off the frozen weights, which then have to be kept in fp32."""
    return init != "default" and _starts()[init][1]


def _starts() -> dict[str, tuple[Callable[[AdapterSpec, Source], Factors], bool]]:
    """Name -> (maker, whether scale * B A is taken off the base)."""
    from lora_select.initialization import activations, gradients, quantized, weights

    return {
        "pissa": (weights.pissa, True),
        "milora": (weights.milora, True),
        "olora": (weights.olora, True),
        "eva": (activations.eva, False),
        "corda_ipm": (activations.corda_ipm, True),
        "corda_kpm": (activations.corda_kpm, True),
        "lora_ga": (gradients.lora_ga, True),
        "lora_one": (gradients.lora_one, False),
        "loftq": (quantized.loftq, False),
    }
