"""The catalogue: one variant a file. To add one, write its file, add it to `VARIANTS`, and give it a contract test."""

from collections.abc import Mapping, Sequence
from typing import Any

from lora_select.spectral.statistics import ADAPTER_RANKS
from lora_select.variants.adalora import AdaLoRA
from lora_select.variants.base import ClosedForm, Variant, has_rank
from lora_select.variants.boft import BOFT
from lora_select.variants.c3a import C3A
from lora_select.variants.corda import CorDAInstruction, CorDAKnowledge
from lora_select.variants.delora import DeLoRA
from lora_select.variants.dora import DoRA
from lora_select.variants.eva import EVA
from lora_select.variants.fourierft import FourierFT
from lora_select.variants.gralora import GraLoRA
from lora_select.variants.hira import HiRA
from lora_select.variants.hra import HRA
from lora_select.variants.ia3 import IA3
from lora_select.variants.loftq import LoftQ
from lora_select.variants.loha import LoHa
from lora_select.variants.lokr import LoKr
from lora_select.variants.lora import LoRA
from lora_select.variants.lora_ga import LoRAGA
from lora_select.variants.lora_one import LoRAOne
from lora_select.variants.lorafa import LoRAFA
from lora_select.variants.loraplus import LoRAPlus
from lora_select.variants.mica import MiCA
from lora_select.variants.milora import MiLoRA
from lora_select.variants.miss import MiSS
from lora_select.variants.oft import OFT
from lora_select.variants.olora import OLoRA
from lora_select.variants.orthogonal import Orthogonal
from lora_select.variants.osf import OSF
from lora_select.variants.pissa import PiSSA
from lora_select.variants.psoft import PSOFT
from lora_select.variants.randlora import RandLoRA
from lora_select.variants.riemannian import Riemannian
from lora_select.variants.road import RoAd
from lora_select.variants.rslora import RsLoRA
from lora_select.variants.shira import SHiRA
from lora_select.variants.tinylora import TinyLoRA
from lora_select.variants.unilora import UniLoRA
from lora_select.variants.vblora import VBLoRA
from lora_select.variants.vera import VeRA
from lora_select.variants.waveft import WaveFT

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
"""What the rule considers by itself, in order of preference where nothing else decides."""

VARIANTS: tuple[type[Variant], ...] = (
    *CANDIDATES,
    OLoRA,
    CorDAInstruction,
    CorDAKnowledge,
    LoftQ,
    LoRAPlus,
    LoRAFA,
    Riemannian,
    AdaLoRA,
    MiCA,
    GraLoRA,
    MiSS,
    RandLoRA,
    DeLoRA,
    VeRA,
    VBLoRA,
    UniLoRA,
    TinyLoRA,
    HiRA,
    LoHa,
    LoKr,
    SHiRA,
    FourierFT,
    WaveFT,
    C3A,
    OFT,
    BOFT,
    HRA,
    PSOFT,
    RoAd,
    IA3,
    OSF,
)
"""Everything that a user may name."""

LEFT_OUT: Mapping[str, str] = {
    "lily": "has no W(theta): its router averages over the batch, so a row's output depends on the rows beside it",
    "pvera": "draws noise in every training step, so it has no W(theta); its mean is VeRA",
    "peanut": "is a network with non-linear layers beside W: no fixed tangent, 1.4 times LoRA's time, no independent use known to us",
    "poly, xlora, arrow": "route between adapters that must be trained first: not one adapter for one dataset",
    "alora": "acts after an invocation text alone, so it is a serving mode of LoRA",
    "shadow": "is a second model beside the layers, not an update of W",
    "prompt, prefix and p-tuning, cartridge, cpt, adaption prompt": "train inputs or states, not an update of W",
    "ln_tuning, beft, trainable_tokens": "train norms, biases or embeddings, not an update of a linear layer's W",
    "kasa": "cuts singular values out of the base for good, so the base cannot be restored",
    "glora": "sums scalings and shifts whose tangents are those of IA3 and LoRA; no independent use known to us",
    "frod": "takes 2.7 times LoRA's time for a sparse tangent that SHiRA has",
    "deft": "projects W before it adds a LoRA: no independent use known to us",
    "adamss": "takes 4.8 times LoRA's time and clusters the weights; no independent use known to us",
    "supertuning": "trains the largest entries of W: SHiRA's tangent with another mask; no independent use known to us",
    "monteclora": "adds noise and a loss to LoRA that a plain training loop drops in silence",
    "velora, qalora, bdlora": "change how LoRA's activations, GPTQ groups or shards are stored, not what is learnt",
}
"""What PEFT 0.21 has and the catalogue has not, by the rule: a published paper, a PEFT class or an init of LoRA, and
independent use or a tangent that no other has. LoRA-Pro, LoRA-RITE, DyLoRA, ReLoRA and MoRA have no PEFT class."""


def offered(variant: type[Variant], ranks: Sequence[int]) -> tuple[Variant, ...]:
    """The variant at each rank, or at its one default size where it has no rank."""
    return tuple(variant(r) for r in ranks) if has_rank(variant) else (variant(),)  # pyright: ignore[reportCallIssue]


def title(name: str) -> str:
    """The variant called `name` as its paper spells it; `name` itself where the catalogue has none.

    >>> title("rslora"), title("dora"), title("of another version")
    ('rsLoRA', 'DoRA', 'of another version')
    """
    return next((variant.title or variant.__name__ for variant in VARIANTS if variant.name == name), name)


def table(model: Any = None, **constraints: Any) -> list[dict[str, Any]]:
    """What exists for a model, its size, and what is refused and why: :func:`lora_select.variants.listing.table`."""
    from lora_select.variants import listing

    return listing.table(model, **constraints)


def named(name: str, r: int) -> Variant:
    """The variant called `name`, at rank `r` if it has one.

    Raises:
        KeyError: there is none.
    """
    return offered({variant.name: variant for variant in VARIANTS}[name], [r])[0]


CATALOGUE: tuple[ClosedForm, ...] = tuple(
    one for variant in VARIANTS for one in offered(variant, ADAPTER_RANKS) if isinstance(one, ClosedForm)
)
"""Everything that the spectral pass measures: variants with a closed form, at every offered rank."""
