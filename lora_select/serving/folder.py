"""A PEFT folder as an engine would find it: what is wrong with it, and where it departs from the form that all engines read alike."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from lora_select.errors import InputError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga", "kasa")
"""Inits of PEFT that change the base's weights when they are made, or that leave another start when PEFT loads the folder."""
BESIDE = ("lora_bias", "modules_to_save", "trainable_token_indices", "layer_replication", "target_parameters")
MERGED_ALONE = frozenset({"modules_to_save", "trainable_token_indices", "target_parameters", "embedding"})
"""What no LoRA of linear layers holds: only the merged model has it."""
FACTOR = re.compile(r"(?P<layer>.+)\.lora_(?:embedding_)?(?P<side>[AB])(?:\.weight)?")
ROWS = "token_adapter.trainable_tokens_delta"
"""Ends the name of what `trainable_token_indices` adds to rows of the embedding."""
COPY = re.compile(r".+\.base_layer\.weight")
"""The base's own weight, which PEFT saves beside the factors of an embedding or an output head."""
PREFIX = "base_model.model."
"""What PEFT puts before the base model's own names."""


@final
@dataclass(frozen=True)
class PeftFolder:
    """A PEFT folder's config and the shape of every tensor, read from the file's header alone."""

    path: Path
    config: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]

    @property
    def is_lora(self) -> bool:
        """Whether it holds PEFT's LoRA, plain or not."""
        return self.config.get("peft_type") == "LORA"

    @property
    def init(self) -> str:
        """`init_lora_weights` where it is a name, else empty."""
        value = self.config.get("init_lora_weights", True)
        return value.lower() if isinstance(value, str) else ""

    @property
    def changes_base(self) -> bool:
        """Whether PEFT takes the start off the base's weights when it loads the folder."""
        return self.init.startswith(CHANGES_BASE)

    def rank(self, layer: str) -> int:
        """The rank r of a layer, by PEFT's rule for patterns: the first key that is a suffix from a dot on."""
        return int(_by_pattern(self.config.get("rank_pattern"), layer, self.config["r"]))

    def of_experts(self, layer: str) -> bool:
        """Whether its factors are those of a tensor of experts (`target_parameters`), r of each expert; nested for the second tensor on."""
        holders = {name.rpartition(".")[0] for name in self.config.get("target_parameters") or ()}
        while layer.endswith(".base_layer"):
            layer = layer.removesuffix(".base_layer")
        return any(layer == holder or layer.endswith(f".{holder}") for holder in holders)

    def scale(self, layer: str) -> float:
        """The factor before B A of a layer: alpha / r, or alpha / sqrt(r) for rsLoRA."""
        alpha = float(_by_pattern(self.config.get("alpha_pattern"), layer, self.config["lora_alpha"]))
        r = self.rank(layer)
        return alpha / math.sqrt(r) if self.config.get("use_rslora") else alpha / r

    @property
    def embeddings(self) -> tuple[str, ...]:
        """Names of the adapted embeddings in the base model."""
        found = (re.fullmatch(r"(.+)\.lora_embedding_A", name) for name in self.shapes)
        return tuple(sorted(match[1].removeprefix(PREFIX) for match in found if match))

    def layers(self) -> tuple[str, ...]:
        """Names of the adapted layers in the base model."""
        found = (FACTOR.fullmatch(name) for name in self.shapes)
        return tuple(sorted({match["layer"].removeprefix(PREFIX) for match in found if match}))


def read_folder(path: Path) -> PeftFolder:
    """Read a PEFT folder.

    Raises:
        InputError: no config or no safetensors there, or one that cannot be read.
    """
    try:
        config = json.loads((path / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path} holds no adapter ({CONFIG}); name a run's folder, such as runs/latest") from error
    except ValueError as error:
        raise InputError(f"{path / CONFIG} is not valid JSON: {error}; save the adapter again") from error
    if not isinstance(config, dict) or "peft_type" not in config:
        raise InputError(f"{path / CONFIG} names no `peft_type`, so it is no config of PEFT; save the adapter again")
    file = path / WEIGHTS
    if not file.is_file():
        other = (
            " (adapter_model.bin is a pickle, and pickles are never read)"
            if (path / "adapter_model.bin").is_file()
            else ""
        )
        raise InputError(f"{path} has no {WEIGHTS}{other}; save the adapter as safetensors")
    return PeftFolder(path, config, _shapes(file))


def faults(folder: PeftFolder) -> tuple[str, ...]:
    """What makes the folder no sound adapter: unknown settings, weights that do not fit; empty if sound."""
    found = [f"{CONFIG} sets `{key}`, which PEFT {_version()} drops in silence; load it with the PEFT that wrote it and save it again"
             for key in unknown_keys(folder.config)]  # fmt: skip
    return (*found, *(_lora_faults(folder) if folder.is_lora else ()))


def beside(folder: PeftFolder) -> tuple[str, ...]:
    """What was trained beside the adapter and is lost unless both are merged into the base; empty where nothing was."""
    found, saved = [], folder.config.get("modules_to_save")
    if saved:
        found.append(
            f"`modules_to_save` {sorted(saved)}: whole modules were trained beside the adapter, which no LoRA holds; use --to merged"
        )
    if folder.config.get("target_parameters"):
        found.append(
            f"`target_parameters` {sorted(folder.config['target_parameters'])}: experts in one tensor were trained, which no LoRA of linear "
            "layers holds; use --to merged"
        )
    if folder.config.get("trainable_token_indices"):
        found.append(
            "`trainable_token_indices`: rows of the embedding were trained, which no LoRA holds; use --to merged"
        )
    if folder.embeddings:
        found.append(
            f"{', '.join(folder.embeddings)}: the embedding was adapted, which no LoRA of linear layers holds; use --to merged"
        )
    return tuple(found)


def unknown_keys(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Keys that the installed PEFT does not know and that are set to something; a newer PEFT's defaults are no fault."""
    import dataclasses

    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    kind = PEFT_TYPE_TO_CONFIG_MAPPING.get(config["peft_type"])
    if kind is None:
        return ("peft_type",)
    known = {field.name for field in dataclasses.fields(kind)}
    return tuple(
        sorted(key for key, value in config.items() if key not in known and value not in (None, False, {}, [], ""))
    )


def departures(folder: PeftFolder) -> dict[str, str]:
    """Where the folder is not in the safe form (plain LoRA of one rank, scale in the factors), by field, each with a sentence.

    The safe form is what every engine reads alike; `lora-select export` writes it.
    """
    config = folder.config
    if not folder.is_lora:
        return {"peft_type": f"it is {config['peft_type']}, and engines load LoRA alone"}
    weak, alpha = math.sqrt(config["r"]), config.get("lora_alpha")
    stated = {
        "use_dora": (config.get("use_dora"), "DoRA's magnitudes have no place in plain LoRA"),
        "use_rslora": (
            config.get("use_rslora"),
            f"rsLoRA: an engine that divides alpha by r makes it {weak:.3g} times too weak",
        ),
        "init_lora_weights": (
            folder.changes_base,
            f"its start ({folder.init}) was taken off the base, and engines add B A to the pristine base",
        ),
        "bias": (config.get("bias", "none") != "none", f"`bias` {config.get('bias')!r} is not part of a plain LoRA"),
        "lora_alpha": (
            isinstance(alpha, float) and not alpha.is_integer(),
            f"alpha {alpha} is no whole number, and Ollama reads one",
        ),
    }
    targets = config.get("target_modules")
    stated["target_modules"] = (
        isinstance(targets, str) and targets != "all-linear",
        f"`target_modules` is the pattern {targets!r} and no list of names",
    )
    stated["embedding"] = (folder.embeddings, f"the embedding is adapted ({', '.join(folder.embeddings)})")
    for field in ("rank_pattern", "alpha_pattern"):
        stated[field] = (config.get(field), f"`{field}` gives layers a rank or alpha of their own")
    for field in BESIDE:
        stated[field] = (config.get(field), f"`{field}` is not part of a plain LoRA")
    return {field: sentence for field, (departs, sentence) in stated.items() if departs}


def _lora_faults(folder: PeftFolder) -> list[str]:
    found, sides = [], dict[str, dict[str, tuple[int, ...]]]()
    for name, shape in folder.shapes.items():
        match = FACTOR.fullmatch(name)
        if match:
            sides.setdefault(match["layer"].removeprefix(PREFIX), {})[match["side"]] = shape
        elif (
            not COPY.fullmatch(name)
            and not (name.endswith("lora_magnitude_vector") or ".lora_magnitude_vector." in name)
            and not (name.endswith(ROWS) and folder.config.get("trainable_token_indices"))
            and not folder.config.get("modules_to_save")
        ):
            found.append(f"{WEIGHTS} holds {name}, which is no factor of a LoRA")
    for layer, pair in sorted(sides.items()):
        r = folder.rank(layer)
        if set(pair) != {"A", "B"}:
            found.append(f"{layer} has factor {''.join(pair)} alone")
        elif (pair["A"][0] != r or pair["B"][1] != r) and not folder.of_experts(layer):
            found.append(f"{layer} has factors of rank {pair['A'][0]} and {pair['B'][1]}, and {CONFIG} says r {r}")
        if not _is_target(folder.config, layer) and not folder.config.get("ensure_weight_tying"):
            found.append(f"{layer} has factors, and `target_modules` does not name it, so PEFT leaves them out")
    if not sides:
        found.append(f"{WEIGHTS} holds no factors")
    return found if len(found) <= 5 else [*found[:5], f"and {len(found) - 5} more"]


def _is_target(config: Mapping[str, Any], layer: str) -> bool:
    targets = config.get("target_modules")
    if targets is None or targets == "all-linear" or config.get("target_parameters"):
        return True
    if isinstance(targets, str):
        return re.fullmatch(targets, layer) is not None
    return any(layer == target or layer.endswith(f".{target}") for target in targets)


def _by_pattern(pattern: Mapping[str, Any] | None, layer: str, default: Any) -> Any:
    for key, value in (pattern or {}).items():
        if re.match(rf"(.*\.)?({key})$", layer):
            return value
    return default


def _shapes(file: Path) -> dict[str, tuple[int, ...]]:
    try:
        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            if size > file.stat().st_size:
                raise ValueError("its header is longer than the file")
            header = json.loads(stream.read(size))
        return {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise InputError(f"{file} is no safetensors file: {error}; save the adapter again") from error


def _version() -> str:
    import importlib.metadata

    return importlib.metadata.version("peft")
