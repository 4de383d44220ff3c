"""The catalogue: one variant a file. To add one, write its file, add it to `VARIANTS`, and give it a contract test."""

from lora_select.spectral.view import RANKS
from lora_select.variant import Variant
from lora_select.variants.dora import DoRA
from lora_select.variants.eva import EVA
from lora_select.variants.lora import LoRA
from lora_select.variants.pissa import PiSSA
from lora_select.variants.rslora import RsLoRA

VARIANTS = (LoRA, RsLoRA, DoRA, PiSSA, EVA)
"""In order of preference where nothing else decides."""

CATALOGUE: tuple[Variant, ...] = tuple(variant(r) for variant in VARIANTS for r in RANKS)
"""Every variant at every offered rank."""


def named(name: str, r: int) -> Variant:
    """The variant called `name` at rank `r`.

    Raises:
        KeyError: there is none.
    """
    return {variant.name: variant for variant in VARIANTS}[name](r)
