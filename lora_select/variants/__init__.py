"""The catalogue: one variant a file. To add one, write its file, add it to `VARIANTS`, and give it a contract test."""

from collections.abc import Sequence

from lora_select.spectral.view import RANKS
from lora_select.variant import ClosedForm, Variant, has_rank
from lora_select.variants.corda_ipm import CorDAInstruction
from lora_select.variants.corda_kpm import CorDAKnowledge
from lora_select.variants.dora import DoRA
from lora_select.variants.eva import EVA
from lora_select.variants.loftq import LoftQ
from lora_select.variants.lora import LoRA
from lora_select.variants.lora_ga import LoRAGA
from lora_select.variants.lora_one import LoRAOne
from lora_select.variants.milora import MiLoRA
from lora_select.variants.olora import OLoRA
from lora_select.variants.orthogonal import Orthogonal
from lora_select.variants.pissa import PiSSA
from lora_select.variants.rslora import RsLoRA

CANDIDATES: tuple[type[ClosedForm], ...] = (
    LoRA,
    RsLoRA,
    DoRA,
    PiSSA,
    EVA,
    Orthogonal,
    MiLoRA,
    LoRAGA,
    LoRAOne,
)
"""What the rule considers by itself, in order of preference where nothing else decides: the spectral pass measures them."""

VARIANTS: tuple[type[Variant], ...] = (*CANDIDATES, OLoRA, CorDAInstruction, CorDAKnowledge, LoftQ)
"""Everything that a user may name."""

CATALOGUE: tuple[ClosedForm, ...] = tuple(variant(r) for variant in CANDIDATES for r in RANKS)  # pyright: ignore[reportCallIssue]
"""Every candidate at every offered rank."""


def offered(variant: type[Variant], ranks: Sequence[int]) -> tuple[Variant, ...]:
    """The variant at each rank, or at its one default size where it has no rank."""
    return tuple(variant(r) for r in ranks) if has_rank(variant) else (variant(),)  # pyright: ignore[reportCallIssue]


def named(name: str, r: int) -> Variant:
    """The variant called `name`, at rank `r` if it has one.

    Raises:
        KeyError: there is none.
    """
    return offered({variant.name: variant for variant in VARIANTS}[name], [r])[0]
