"""Where an adapter is served: one engine a file, with what it takes, the form it gets, and the command that serves it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_select.serving import llamacpp, merged, mlx, ollama, sglang, vllm
from lora_select.serving.engine import Engine, Form, ServedAdapter
from lora_select.serving.folder import MERGED_ALONE, PeftFolder, beside, departures, faults, read_folder

WAY = "`lora-select export` writes the form that all of them take"

ENGINES: Mapping[str, Engine] = {
    engine.name: engine
    for engine in (vllm.ENGINE, sglang.ENGINE, llamacpp.ENGINE, ollama.ENGINE, mlx.ENGINE, merged.ENGINE)
}
"""Every engine by the name that `--serve` and `selection.serve` take."""

__all__ = [
    "ENGINES",
    "Engine",
    "Form",
    "PeftFolder",
    "ServedAdapter",
    "beside",
    "departures",
    "faults",
    "read_folder",
    "serve_command",
]
__all__ += ["steps", "unmergeable", "unsupported", "unsupported_base", "warnings", "warnings_before"]


def unsupported(engine: str | None, adapter: ServedAdapter) -> tuple[str, ...]:
    """Why the engine cannot serve the adapter, before it is trained: one sentence a rule, each with the way out.

    Example:
        >>> unsupported("vllm", ServedAdapter("lora", 1024, merges=True))
        ('vLLM serves adapters up to rank 512; lora exports 1024; choose a lower r',)
        >>> unsupported(None, ServedAdapter("dora", None, merges=True))
        ()
    """
    if engine is None:
        return ()
    where = ENGINES[engine]
    if where.form == "merged":
        return unmergeable(adapter)
    if adapter.rank is None:
        out = "--serve merged" if adapter.merges else "another engine"
        return (
            f"{where.title} serves plain LoRA, and {adapter.variant} has no LoRA of the same function; take {out}, or choose LoRA",
        )
    if where.ranks and adapter.rank > max(where.ranks):
        most = max(where.ranks)
        return (
            f"{where.title} serves adapters up to rank {most}; {adapter.variant} exports {adapter.rank}; choose a lower r",
        )
    return ()


def unsupported_base(engine: str | None, architecture: str) -> tuple[str, ...]:
    """Why the engine cannot be given adapters of a base model, by the architecture in its config."""
    if engine is None or (known := ENGINES[engine].architectures) is None or architecture in known:
        return ()
    return (
        f"{ENGINES[engine].title} needs the adapter as GGUF, and lora-select converts those of {', '.join(sorted(known))}, not of "
        f"{architecture}; export --to lora and convert that folder with llama.cpp's convert_lora_to_gguf.py, or take --serve merged",
    )


def serve_command(engine: str, folder: Path, base: str, rank: int) -> str:
    """The shell command that serves an exported folder.

    Example:
        >>> serve_command("vllm", Path("out"), "org/model", 17)
        'vllm serve org/model --enable-lora --max-lora-rank 32 --lora-modules adapter=out'
    """
    return ENGINES[engine].command(folder, base, rank)


def steps(engine: str | None, adapter: ServedAdapter, base: str) -> tuple[str, ...]:
    """The two commands from a trained adapter to a server, for an adapter that is not trained yet; empty without an engine.

    Example:
        >>> steps("sglang", ServedAdapter("lora", 16, merges=True), "org/model")[0]
        'lora-select export TRAINED --serve sglang --out served'
    """
    if engine is None:
        return ()
    export = f"lora-select export TRAINED --serve {engine} --out served"
    return export, serve_command(engine, Path("served"), base, adapter.rank or 0)


def warnings(folder: PeftFolder, engine: str | None = None) -> tuple[str, ...]:
    """What a PEFT folder that is not in the safe form would meet, one line a field; empty where every engine reads it alike.

    Args:
        folder: a PEFT folder.
        engine: one engine alone; None for all of them.
    """
    engines = [ENGINES[engine]] if engine else list(ENGINES.values())
    own = [one.title for one in engines if one.form not in ("lora", "merged")]
    found = (
        [f"a PEFT folder is not what {', '.join(own)} reads. `lora-select export --serve` writes its form"]
        if engine and own
        else []
    )
    for field, sentence in departures(folder).items():
        drops = [one.title for one in engines if field in one.ignores]
        stops = [one.title for one in engines if field in one.refuses]
        then = [f"dropped in silence by {', '.join(drops)}"] if drops else []
        then += [f"refused by {', '.join(stops)}"] if stops else []
        way = "`lora-select export --to merged` holds it" if field in MERGED_ALONE else WAY
        if then:
            found.append(f"{sentence}: {'; '.join(then)}. {way}")
        elif engine is None and not any(field in one.ignores | one.refuses for one in ENGINES.values()):
            found.append(f"{sentence}, and no engine was tried with it. {way}")
    return tuple(found)


def warnings_before(config: Mapping[str, Any], engine: str | None = None) -> tuple[str, ...]:
    """:func:`warnings` of the folder that will be trained, by its PEFT config; empty where it will be in the safe form.

    Example:
        >>> warnings_before({"peft_type": "LORA", "r": 16, "lora_alpha": 16, "target_modules": {"q_proj"}}, "mlx")
        ()
    """
    folder = PeftFolder(
        Path(), {**config, "peft_type": str(getattr(config["peft_type"], "value", config["peft_type"]))}, {}
    )
    return warnings(folder, engine) if departures(folder) else ()


def unmergeable(adapter: ServedAdapter) -> tuple[str, ...]:
    """Why the adapter cannot become part of its base: one sentence a rule, each with the way out."""
    found = []
    if not adapter.merges:
        found.append(
            f"PEFT cannot merge {adapter.variant} into the base, and an adapter that becomes part of it was asked for; choose LoRA"
        )
    if adapter.quantized_base:
        found.append(
            f"an adapter trained on a {adapter.quantized_base} base fits that base, and merging it re-quantises the sum; serve it "
            "unmerged, or train on an unquantised base"
        )
    return tuple(found)
