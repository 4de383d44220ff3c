"""An adapter of any PEFT kind as one update a layer, D = B A, and back to a PEFT folder.

Plain LoRA (and rsLoRA, and the rank-2r form of initialisations that change the base) is taken as its two factors: A is replaced in the file and nothing
else. Every other kind is taken as its merged weight less the pristine one; after the filter it is written as plain LoRA of the
smallest rank within a stated error, or refused.
"""

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from lora_select import models
from lora_select.errors import InputError
from lora_select.export.plain_lora import write_plain
from lora_select.export.updates import low_rank, updates
from lora_select.serving.folder import PREFIX

if TYPE_CHECKING:
    from torch import Tensor, nn

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "milora", "loraga", "lora_ga")
EXACT = 1e-6
MOST_RANK = 128
MAX_ERROR = 0.05
"""Largest ||D* - B A|| / ||D*|| of an update that is no LoRA, Frobenius norms over all layers."""
AS_TRAINED, LOW_RANK, DENSE = "lora", "low rank", "dense"


@final
@dataclass(frozen=True)
class Update:
    """One layer's update D = B A: `a` (r, n) and `b` (m, r), scale included in B; or `a` = D (m, n) with `b` None."""

    a: "Tensor"
    b: "Tensor | None"


@final
@dataclass(frozen=True)
class Form:
    """An adapter as updates by layer name. `kind`: `lora` (A is replaced in its file), `low rank` (exact factors), `dense`."""

    folder: Path
    config: Mapping[str, Any]
    kind: str
    updates: Mapping[str, Update]
    keys: Mapping[str, str]
    """Layer -> name of its A in the file, for `lora`."""


def config_of(folder: Path) -> dict[str, Any]:
    """The adapter's config.

    Raises:
        InputError: the folder holds no adapter, or one that cannot be read.
    """
    file = folder / CONFIG
    if not file.is_file():
        raise InputError(
            f"{folder} holds no adapter ({CONFIG}); name a PEFT folder or a run's folder, such as runs/latest"
        )
    if not (folder / WEIGHTS).is_file():
        raise InputError(
            f"{folder} has no {WEIGHTS}; pickled weights (adapter_model.bin) are never read: save it again with safetensors"
        )
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{file} is not valid JSON: {error}") from error


def read(folder: Path, base: Any, *, load_base: Any) -> Form:
    """The adapter's updates on a loaded base.

    Args:
        folder: a PEFT folder.
        base: the pristine base model; it is left as it was.
        load_base: makes another pristine base, for adapters that PEFT has to merge.

    Raises:
        InputError: the adapter is of another base, changes more than linear layers, or holds NaN or infinity.
    """
    config = config_of(folder)
    _refuse_extras(folder, config)
    if _is_plain(config):
        return _factors(folder, config, base)
    return _merged(folder, config, base, load_base)


def _refuse_extras(folder: Path, config: Mapping[str, Any]) -> None:
    whole = [name for name in ("modules_to_save", "trainable_token_indices", "target_parameters") if config.get(name)]
    if whole:
        listed = ", ".join(f"{name}: {config[name]}" for name in whole)
        raise InputError(
            f"{folder} also trains what is no update of a linear layer ({listed}); the filter cannot hold that back"
        )
    if config.get("bias", "none") != "none" or config.get("lora_bias"):
        raise InputError(f"{folder} also trains biases; the filter works on weights, train with bias='none'")
    if config.get("peft_type") in {"PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING", "CPT"}:
        raise InputError(
            f"{folder} is a {config['peft_type']} adapter: it changes the input and no weight, so there is nothing to filter"
        )


def _is_plain(config: Mapping[str, Any]) -> bool:
    init = str(config.get("init_lora_weights", True)).lower()
    odd = any(
        config.get(name)
        for name in ("use_dora", "megatron_config", "alora_invocation_tokens", "use_qalora", "layer_replication")
    )
    return config.get("peft_type") == "LORA" and not odd and not init.startswith(CHANGES_BASE) and init != "gralora"


def _factors(folder: Path, config: Mapping[str, Any], base: Any) -> Form:
    """A and s B of plain LoRA, straight from its file, each checked against the layer it is for."""
    from safetensors.torch import load_file

    tensors = load_file(folder / WEIGHTS)
    layers = linear_modules(base)
    found: dict[str, Update] = {}
    keys: dict[str, str] = {}
    for key, a in tensors.items():
        if not key.endswith("lora_A.weight"):
            if not key.endswith("lora_B.weight"):
                raise InputError(
                    f"{folder} holds {key}, which is no factor of a linear layer; the filter cannot hold it back"
                )
            continue
        other = key.removesuffix("lora_A.weight") + "lora_B.weight"
        if other not in tensors:
            raise InputError(f"{folder}: {key} has no lora_B beside it; the file is not whole")
        b = tensors[other]
        name = key.removeprefix(PREFIX).removesuffix(".lora_A.weight")
        _check_layer(folder, name, layers, (b.shape[0], a.shape[1]))
        if not (bool(a.isfinite().all()) and bool(b.isfinite().all())):
            raise InputError(f"{folder}: the factors of {name} hold NaN or infinity; the training diverged")
        found[name] = Update(a.float(), b.float() * _scale(config, name, a.shape[0]))
        keys[name] = key
    if not found:
        raise InputError(f"{folder} holds no lora_A; there is nothing to filter")
    return Form(folder, config, AS_TRAINED, found, keys)


def _scale(config: Mapping[str, Any], name: str, rank: int) -> float:
    """The factor alpha / r, or alpha / sqrt(r), of the layer: patterns are matched as PEFT does."""
    from peft.utils.other import get_pattern_key

    patterns: dict[str, float] = config.get("alpha_pattern") or {}
    usual: float = config.get("lora_alpha", rank)
    alpha = patterns.get(get_pattern_key(list(patterns), name), usual)
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def _check_layer(folder: Path, name: str, layers: "Mapping[str, nn.Module]", shape: tuple[int, int]) -> None:
    from lora_select.spectral.linear_layers import shape_of

    if name not in layers:
        raise InputError(
            f"{folder} adapts {name}, which the base model has no linear layer for; it was trained on another base: name that one with --base"
        )
    wanted = shape_of(layers[name])
    if wanted != shape:
        raise InputError(
            f"{folder}: the update of {name} is {shape[0]} x {shape[1]}, the base model's weight {wanted[0]} x {wanted[1]}; it was trained on "
            "another base: name that one with --base"
        )


def linear_modules(model: Any) -> "dict[str, nn.Module]":
    """Every linear layer by name, the output layer too."""
    from lora_select.spectral.linear_layers import is_linear

    return {name: module for name, module in model.named_modules() if is_linear(module)}


def _merged(folder: Path, config: Mapping[str, Any], base: Any, load_base: Any) -> Form:
    """Merged weight less pristine weight, as exact factors where its rank is small, else dense."""
    from lora_select.spectral.linear_layers import plain_weight

    try:
        model = models.with_adapter(load_base(), folder)
    except (RuntimeError, ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"PEFT cannot put {folder} on the base model: {' '.join(str(error).split())[:200]}; is it the base it was trained on?"
        ) from error
    pristine = linear_modules(base)
    found: dict[str, Update] = {}
    small = True
    moved = {name: layer.get_base_layer() for name, layer in _adapted(model)}
    for name, update in updates(model):
        _check_layer(folder, name, pristine, (update.shape[0], update.shape[1]))
        # an initialisation may have taken its start off the base's weight when PEFT loaded it
        taken = plain_weight(moved[name]).double() - plain_weight(pristine[name]).double()
        whole = update + taken.to(update)
        if not bool(whole.isfinite().all()):
            raise InputError(f"{folder}: the update of {name} holds NaN or infinity; the training diverged")
        form, exact = _smallest(whole)
        small &= exact
        found[name] = form
    if not found:
        raise InputError(f"{folder} adapts no linear layer; there is nothing to filter")
    return Form(folder, config, LOW_RANK if small else DENSE, found, {})


def _adapted(model: Any) -> list[tuple[str, Any]]:
    from lora_select.export.updates import adapted_layers

    return adapted_layers(model)


def _smallest(update: "Tensor") -> tuple[Update, bool]:
    """Factors of the least rank that is exact, or the matrix itself."""
    total = float(update.square().sum())
    most = min(MOST_RANK, min(update.shape) // 2)
    u, s, v = low_rank(update, most)
    left = total - s.square().cumsum(0)
    enough = (left <= max(EXACT**2, 1e-13) * total).nonzero()
    if total == 0 or not len(enough):
        return (
            (Update(update.float()[:1] * 0, update.float()[:, :1] * 0), True)
            if total == 0
            else (Update(update.float(), None), False)
        )
    rank = int(enough[0]) + 1
    return Update((s[:rank, None] * v[:, :rank].T).float(), u[:, :rank].float()), True


@contextmanager
def applied(model: Any, updates_: Mapping[str, Update]) -> Iterator[None]:
    """The base model with the updates, inside: y + D x by hooks, so that the base's weights stay as they are, however they are stored."""
    layers = linear_modules(model)
    with ExitStack() as stack:
        for name, update in updates_.items():
            stack.callback(layers[name].register_forward_hook(_adding(layers[name], update)).remove)
        yield


def _adding(module: "nn.Module", update: Update) -> Any:
    weight = next(iter(module.parameters()))
    device = weight.device if weight.device.type != "meta" else None
    a = update.a.to(device=device)
    b = None if update.b is None else update.b.to(device=device)

    def hook(_module: "nn.Module", inputs: "tuple[Tensor, ...]", output: "Tensor") -> "Tensor":
        seen = inputs[0].to(a.dtype) @ a.T
        return output + (seen if b is None else seen @ b.T).to(output.dtype)

    return hook


@final
@dataclass(frozen=True)
class Written:
    """How updates are written: rank (None: each layer's as it was), ||D* - B A|| / ||D*||, and `lora`, `exact` or `truncated`."""

    rank: int | None
    error: float
    method: str


def loadable(
    form: Form, new: Mapping[str, Update], max_error: float = MAX_ERROR
) -> tuple[Mapping[str, Update], Written]:
    """The updates as plain loaders can take them: of plain LoRA as they are, of other kinds at the least rank within the error.

    Raises:
        InputError: the smallest rank within `max_error` is more than 128.
    """
    if form.kind == AS_TRAINED:
        return new, Written(None, 0.0, AS_TRAINED)
    rank, error = least_rank(new, max_error)
    method = "exact" if error <= EXACT else "truncated"
    return {name: Update(*at_rank(update, rank)) for name, update in new.items()}, Written(rank, error, method)


def write(form: Form, new: Mapping[str, Update], out: Path, base_source: str, written: Written) -> None:
    """What :func:`loadable` gave as a PEFT folder that any loader of plain LoRA takes."""
    out.mkdir(parents=True, exist_ok=True)
    if written.rank is None:
        _replace_factors(form, new, out)
        return
    factors = {name: (update.a, update.b) for name, update in new.items() if update.b is not None}
    write_plain(out, factors, written.rank, base_source, form.config.get("task_type"))


def _replace_factors(form: Form, new: Mapping[str, Update], out: Path) -> None:
    """The folder with other A's: B, scale and config as they were; an initialisation that has served is forgotten."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(form.folder / WEIGHTS)
    for name, key in form.keys.items():
        tensors[key] = new[name].a.to(tensors[key]).contiguous()
    for file in form.folder.iterdir():
        if file.is_file() and file.name not in {WEIGHTS, CONFIG}:
            shutil.copy2(file, out / file.name)
    config = dict(form.config)
    if "init_lora_weights" in config:
        config["init_lora_weights"] = True
    (out / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    save_file(tensors, out / WEIGHTS, metadata={"format": "pt"})


def least_rank(new: Mapping[str, Update], max_error: float) -> tuple[int, float]:
    """The least rank, the same in every layer, within the error; and the error."""
    spectra = [_singular(update)[1] for update in new.values()]
    total = math.fsum(float(s.square().sum()) for s in spectra)
    for rank in range(1, MOST_RANK + 1):
        left = math.fsum(float(s[rank:].square().sum()) for s in spectra)
        if left <= max(max_error**2, 1e-13) * total or total == 0:
            return rank, math.sqrt(left / total) if total else 0.0
    left = math.fsum(float(s[MOST_RANK:].square().sum()) for s in spectra)
    raise InputError(
        f"the filtered update is no LoRA of rank {MOST_RANK} or less: {math.sqrt(left / total):.2g} of its norm would be lost, over the limit of "
        f"{max_error:g}; raise `retention.max_error` (--max-error), or serve the adapter as it was trained"
    )


def _singular(update: Update) -> "tuple[Tensor, Tensor, Tensor]":
    """All singular triplets U, S, V of D, float64, through the small side."""
    import torch

    if update.b is None:
        return low_rank(update.a.double(), min(update.a.shape))
    q_b, r_b = torch.linalg.qr(update.b.double())
    q_a, r_a = torch.linalg.qr(update.a.double().T)
    u, s, vh = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    return q_b @ u, s, q_a @ vh.T


def at_rank(update: Update, rank: int) -> "tuple[Tensor, Tensor]":
    """Balanced float32 A (rank, n) and B (m, rank), padded with zeros."""
    import torch

    u, s, v = (part[..., :rank] for part in _singular(update))
    root = s.sqrt()
    a = torch.zeros(rank, v.shape[0])
    b = torch.zeros(u.shape[0], rank)
    a[: len(s)] = (root[:, None] * v.T).float()
    b[:, : len(s)] = (u * root).float()
    return a, b


def copy(form: Form, out: Path) -> None:
    """The adapter as it was trained, into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    for file in form.folder.iterdir():
        if file.is_file():
            shutil.copy2(file, out / file.name)
