"""What tools cannot express, in sentences that name the way out."""

from lora_select import serving
from lora_select.records import AdapterSpec
from lora_select.variants import named
from lora_select.variants.base import served

PEFT_MAKES = ("pissa", "olora")
"""Starts that take B A off the base and that PEFT makes by itself, under the same name, whenever it loads the adapter."""
FRESH, TENSORS, BY_NAME = "fresh", "tensors", "by name"


def start_of(spec: AdapterSpec) -> str:
    """How an adapter's start travels: PEFT's default start (`fresh`), `tensors`, or an init `by name`.

    By name: PEFT makes the start again whenever it loads the folder, because it also changes or freezes something else.
    """
    init = spec.peft_arguments.get("init_lora_weights", True)
    if spec.init in PEFT_MAKES or init == "mica":
        return BY_NAME
    return FRESH if spec.init == "default" and init is True else TENSORS


def everywhere(spec: AdapterSpec, serve: str | None) -> tuple[str, ...]:
    """What no other tool can hold."""
    found = []
    variant = named(spec.variant, spec.r or 1)
    if variant.export_rank_factor > 1 and spec.init not in PEFT_MAKES:
        found.append(
            f"{spec.variant} takes its start B0 A0 off the base weights, and PEFT has no init that does the same when it loads the "
            f"folder: on the pristine base it would be another function. Train it with lora-select "
            f"(`selection.variant={spec.variant}`), which converts it exactly to rank 2r afterwards, or choose pissa, olora or eva"
        )
    found += serving.unsupported(serve, served(variant))
    if spec.init in PEFT_MAKES and serve is not None and serving.ENGINES[serve].form != "merged":
        found.append(
            f"{serving.ENGINES[serve].title} adds B A to the pristine base, and a {spec.variant} adapter that another tool saves belongs "
            f"on the base less B0 A0. Train it with lora-select (`selection.variant={spec.variant} selection.serve={serve}`), which saves "
            "the exact rank-2r form, or leave `selection.serve` out"
        )
    return tuple(found)


def ends_only(spec: AdapterSpec, tool: str) -> tuple[str, ...]:
    """A tool that names layers by their last names alone, and so would adapt those of another tower too."""
    if not isinstance(spec.placed, str):
        return ()
    return (
        f"{tool} names layers by their ends, and this model has layers of the same ends outside of what was measured (a vision or audio "
        "tower); take peft, trl, axolotl or ms-swift",
    )


def experts(spec: AdapterSpec, tool: str) -> tuple[str, ...]:
    """A tool whose settings for experts in one tensor were not tried."""
    if not spec.peft_arguments.get("target_parameters"):
        return ()
    return (
        f"{tool} was never tried with adapters of experts in one tensor; take trl or peft, or `selection.adapt_experts=false`",
    )


def lora_only(spec: AdapterSpec, tool: str) -> tuple[str, ...]:
    """A tool that knows the adapters of `LoraConfig` alone."""
    if spec.peft_class == "LoraConfig":
        return ()
    return (f"{tool} has no {spec.variant} of these settings; take trl or peft, or `selection.variant=lora`",)


def optimizers(spec: AdapterSpec, tool: str, known: tuple[str, ...]) -> tuple[str, ...]:
    """A tool that has AdamW and the optimizers in `known`."""
    name = spec.optimizer.get("name", "adamw")
    if name in ("adamw", *known):
        return ()
    return (
        f"{spec.variant} needs the optimizer {name}, which {tool} cannot be told; train it with lora-select "
        f"(`selection.variant={spec.variant}`), or choose `selection.variant=lora`",
    )


def inits(spec: AdapterSpec, tool: str, known: tuple[str, ...]) -> tuple[str, ...]:
    """A tool that knows, of the starts that go by a name, those in `known`; starts that are tensors it loads from a folder."""
    if start_of(spec) != BY_NAME or spec.variant in known:
        return ()
    return (f"{tool} has no start {spec.variant}; take trl or peft, or `selection.variant` eva, pissa or lora",)
