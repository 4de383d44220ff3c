"""Start factors that PEFT lacks or builds otherwise: exact PiSSA from the weights, EVA from the spectral record."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lora_select.errors import InputError
from lora_select.records import AdapterSpec

if TYPE_CHECKING:
    from torch import Tensor


SIDES = ("lora_A", "lora_B")


def write_initial_factors(spec: AdapterSpec, base_path: Path, tensors: Path, out: Path) -> Path | None:
    """Write `<layer>.lora_A` (r, n) and `<layer>.lora_B` (m, r), float32, for starts that are not PEFT's own.

    The file's metadata says `subtract_from_base`: `true` when scale * B A must be taken off the frozen weight, so that
    the function does not change at the start.

    Args:
        spec: the adapter; `spec.init` is `default`, `pissa` or `eva`.
        base_path: folder of the base model's safetensors (`pissa`).
        tensors: `spectra.safetensors` (`eva`).
        out: file to write.

    Returns:
        `out`, or None for `default`.

    Raises:
        InputError: an unknown init, a targeted layer without a weight or without enough measured directions.
    """
    if spec.init == "default":
        return None
    if spec.init == "pissa":
        factors = _pissa(spec, Path(base_path))
    elif spec.init == "eva":
        factors = _eva(spec, Path(tensors))
    else:
        raise InputError(f"init {spec.init!r} is unknown; known: default, pissa, eva")
    from safetensors.torch import save_file

    found = {f"{layer}.{side}": factor for layer, pair in factors for side, factor in zip(SIDES, pair, strict=True)}
    if not found:
        raise InputError(f"no layer of {spec.init} factors ends with one of {', '.join(spec.target_modules)}")
    save_file(found, out, metadata={"subtract_from_base": "true" if spec.init == "pissa" else "false"})
    return Path(out)


def principal_factors(weight: "Tensor", r: int, scale: float) -> "tuple[Tensor, Tensor]":
    """A = sqrt(S_r / s) V_r^T (r, n) and B = U_r sqrt(S_r / s) (m, r), so that s B A is W's best rank-r approximation.

    The SVD comes from the eigenvectors of the smaller Gram matrix in float64: the leading values carry a relative error of
    about 1e-16 (sigma_1 / sigma_r)^2, at a fraction of an SVD's cost.
    """
    import torch

    w = weight.double()
    tall = w.shape[0] >= w.shape[1]
    values, vectors = torch.linalg.eigh(w.T @ w if tall else w @ w.T)
    vectors = vectors[:, -r:].flip(1)
    root = values[-r:].flip(0).clamp(min=0).sqrt()
    gain = (root / scale).sqrt()
    if tall:
        other = w @ vectors / root.clamp(min=1e-30)
        return (gain[:, None] * vectors.T).float(), (other * gain).float()
    other = w.T @ vectors / root.clamp(min=1e-30)
    return (gain[:, None] * other.T).float(), (vectors * gain).float()


def _pissa(spec: AdapterSpec, base: Path) -> "Iterator[tuple[str, tuple[Tensor, Tensor]]]":
    for layer, weight in _target_weights(spec, base):
        if spec.r > min(weight.shape):
            raise InputError(
                f"r {spec.r} is above the smallest side {min(weight.shape)} of {layer}; lower `selection.r`"
            )
        a, b = principal_factors(weight, spec.r, spec.scale)
        yield layer, (a.contiguous(), b.contiguous())


def _eva(spec: AdapterSpec, tensors: Path) -> "Iterator[tuple[str, tuple[Tensor, Tensor]]]":
    from safetensors import safe_open

    with safe_open(tensors, framework="pt") as file:
        names = [
            key.removesuffix(".activation_vectors") for key in list(file.keys()) if key.endswith(".activation_vectors")
        ]
        for layer in sorted(name for name in names if _targeted(name, spec)):
            vectors = file.get_tensor(f"{layer}.activation_vectors")
            if spec.r > vectors.shape[1]:
                raise InputError(
                    f"EVA at r {spec.r} needs {spec.r} activation directions of {layer}, and {tensors.name} holds "
                    f"{vectors.shape[1]}; raise `analysis.sketch_size` or lower `selection.r`"
                )
            out_features = file.get_slice(f"{layer}.gradient_left").get_shape()[0]
            yield layer, (vectors[:, : spec.r].T.contiguous(), vectors.new_zeros(out_features, spec.r))


def _target_weights(spec: AdapterSpec, base: Path) -> "Iterator[tuple[str, Tensor]]":
    """Two-dimensional weights of the targeted layers, one at a time, by module name."""
    from safetensors import safe_open

    for path in _weight_files(base):
        with safe_open(path, framework="pt") as file:
            for key in sorted(file.keys()):
                layer = key.removesuffix(".weight")
                if key.endswith(".weight") and _targeted(layer, spec):
                    weight = file.get_tensor(key)
                    if weight.ndim == 2:
                        yield layer, weight


def _weight_files(base: Path) -> list[Path]:
    index = base / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        return [base / name for name in names]
    files = sorted(base.glob("*.safetensors"))
    if not files:
        raise InputError(f"{base} holds no safetensors file; PiSSA's start is computed from the base model's weights")
    return files


def _targeted(layer: str, spec: AdapterSpec) -> bool:
    return any(layer == suffix or layer.endswith(f".{suffix}") for suffix in spec.target_modules)
