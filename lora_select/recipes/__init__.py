"""Files that other trainers load unchanged: one tool a file, each with what it cannot express and what it writes."""

import dataclasses
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import final

from lora_select.errors import InputError
from lora_select.recipes import axolotl, expressible, llamafactory, ms_swift, peft, trl, unsloth
from lora_select.recipes.afterwards import RETAIN
from lora_select.recipes.recipe import START, Order, Tool, Written
from lora_select.records import AdapterSpec
from lora_select.variants import named

TOOLS: Mapping[str, Tool] = {
    tool.name: tool for tool in (peft.TOOL, trl.TOOL, llamafactory.TOOL, axolotl.TOOL, ms_swift.TOOL, unsloth.TOOL)
}
"""Every trainer by the name that `--trainers` takes."""


@final
@dataclasses.dataclass(frozen=True)
class Emitted:
    """A tool's folder and how it is used."""

    tool: str
    folder: Path
    written: Written


def check_names(tools: Sequence[str]) -> None:
    """Stop at a trainer that is not known.

    Raises:
        InputError: names those that are.
    """
    for name in tools:
        if name not in TOOLS:
            raise InputError(f"`recipes.trainers` {name!r} is no trainer here; known: {', '.join(TOOLS)}")


def refuse(spec: AdapterSpec, tools: Sequence[str], serve: str | None) -> None:
    """Stop where a tool cannot express the adapter.

    Raises:
        InputError: one line a tool and fault, each with the way out.
    """
    faults = dict.fromkeys(
        f"`recipes.trainers` {name}: {fault}" for name in tools for fault in TOOLS[name].cannot(spec, serve)
    )
    if faults:
        raise InputError("\n".join(faults))


def refuse_named(variant: str, tools: Sequence[str], serve: str | None) -> None:
    """The same for a variant that the user named, before anything is measured; its rank does not matter here.

    Raises:
        InputError: as :func:`refuse`.
    """
    refuse(named(variant, 8).spec(), tools, serve)


def refuse_rows(longest: int, max_length: int, tools: Sequence[str]) -> None:
    """Stop where a tool cuts long rows otherwise than the measurement did.

    Raises:
        InputError: names the length that holds every row.
    """
    others = [name for name in tools if not TOOLS[name].cuts_rows]
    if others and longest > max_length:
        raise InputError(
            f"`recipes.trainers` {', '.join(others)}: the longest row has {longest} tokens, over `dataset.max_length` {max_length}, and this tool takes "
            f"tokens off the prompt too where the measurement cuts the end; use `dataset.max_length` {longest}, or leave long rows out"
        )


def emit(order: Order, tools: Sequence[str], spectra: Path, out: Path) -> tuple[Emitted, ...]:
    """Write one folder a tool into `out`; in an older one only the files written here are replaced, never what was trained there.

    Args:
        order: what is trained; its `start` is made here where a tool needs one.
        tools: names in `TOOLS`.
        spectra: `spectra.safetensors`.
        out: the folder.

    Raises:
        InputError: a tool cannot express the adapter or the rows.
    """
    refuse(order.spec, tools, order.serve)
    refuse_rows(order.rows.longest, order.max_length, tools)
    carried = expressible.start_of(order.spec) == expressible.TENSORS
    with tempfile.TemporaryDirectory() as temporary:
        start = Path(temporary) / "start"
        if carried or peft.TOOL.name in tools:
            from lora_select.recipes.initial_adapter import write_start

            write_start(order.spec, order.plan, order.base, order.model, spectra, order.quantize, start)
        return tuple(_one(order, name, start if carried or name == peft.TOOL.name else None, out) for name in tools)


def _one(order: Order, name: str, start: Path | None, out: Path) -> Emitted:
    folder = out / name
    shutil.rmtree(folder / START, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    written = TOOLS[name].write(dataclasses.replace(order, start=start), folder)
    after = ("after the training, with the folder of its adapter: python retain.py ADAPTER",)
    notes = written.notes + (after if (folder / RETAIN).is_file() else ())
    return Emitted(name, folder, dataclasses.replace(written, notes=notes))
