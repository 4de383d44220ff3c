"""How much memory a rank needs: a sum of terms, each with its formula and source.

P base parameters, A adapter parameters, N ranks, L layers, d hidden size, V vocabulary, T tokens that the heaviest micro-batch runs
over (padding included), s bytes a number of the base's precision.

    weights      s P; int8: 1 + 4 / d, nf4: 1/2 + 4 / 64 bytes for the linear layers [1]; ZeRO-3: / N, and while a step runs 2e7 gathered
                 parameters (`zero.LIVE_PARAMETERS`) and the largest one, V d, besides [2, DeepSpeed's `stage3_max_live_parameters`, which
                 keeps back what is gathered ahead of use and not what is used]
    adapter      4 A of parameters; gradients 4 A, / N from ZeRO-2; two moments 8 A, / N from ZeRO-1 [2], with a master copy of
                 4 A / N there; 0 where offloaded
    experts      s P at most where PEFT adapts experts in one tensor: W + s B A is a tensor of its own in each forward pass
    activations  T L e s, with e = 6 d + a + f the numbers that a block keeps for its backward pass (below); with checkpointing
                 T L d s and one block whole [3, section 5]
    logits       three copies of at most 2^24 numbers (`loss.CHUNK_ELEMENTS`) in float32, or of label tokens x V if those are fewer;
                 of T x V for a trainer that forms the logits of every token

    heap         on a CPU, 0.6 of the activations of a pass without checkpointing: memory that was given back to glibc's heap and not to
                 the system. Fitted to four settings of SmolLM2 (`HEAP`). At ZeRO-3 1.3 s P besides: each gathered weight that is released
                 leaves a hole among activations that stay (fitted to SmolLM2, `HOLES`), unless one of d x f is of 32 MiB or more,
                 which glibc takes from the system and gives back [mallopt(3), M_MMAP_THRESHOLD]

What a Llama-like block keeps when only its adapters are trained, in numbers a token: both norms' input and normalised input (4 d),
the adapters' inputs x of the attention and of the MLP (2 d), the query, key, value and output of attention (2 d + 2 d_kv),
the MLP's gate, its activation, the other half and their product (4 f). A frozen W keeps nothing [4]. With a = 2 d + 2 d_kv + 3 f = P_block / d
that is 6 d + a + f, and f = (a - 8/3 d) / 3 where d_kv = d / 3 is not known. In half precision PEFT also keeps a float32 copy of each
adapter's input, 4 bytes x (6 d + f). DoRA keeps the outputs of base and adapter again: 2 x (3 d + 2 f).

References:
    [1] Dettmers et al., "QLoRA", 2023, arXiv:2305.14314, section 3. [2] Rajbhandari et al., "ZeRO", 2020, arXiv:1910.02054, section 5.
    [3] Korthikanti et al., "Reducing activation recomputation", 2022, arXiv:2205.05198: their 34 s b h counts full training in
    16 bits with dropout; [4] Hu et al., "LoRA", 2021, arXiv:2106.09685, section 4.2.
"""

from dataclasses import dataclass
from typing import Literal

from lora_select.records import AdapterSpec, BaseModel, Range
from lora_select.training.machine import GIB
from lora_select.training.zero import LIVE_PARAMETERS

BYTES = {"fp32": 4, "bf16": 2}
PROCESS_GIB = {"cpu": 0.55, "cuda": 1.0}
"""Of a CPU rank: interpreter with torch, transformers, PEFT and DeepSpeed (measured); of a GPU rank: CUDA's context (not measured)."""
HEAP = 0.6
"""A fixed threshold for mmap (MALLOC_MMAP_THRESHOLD_) removes this and costs a quarter more processor time: not done."""
HOLES = 1.3
"""Of the weights, at ZeRO-3 on a CPU: between what SmolLM2 left over in three steps (1.1) and in five (1.6) on two ranks."""
MMAP_BYTES = 2**25
CHUNK_ELEMENTS = 2**24
LOW, HIGH = 0.8, 1.3
"""Spread around the expected value; see the measured error in docs/operations.md."""


@dataclass(frozen=True)
class Setting:
    """What decides a rank's memory besides model and adapter.

    `tokens` and `labels` are those of the heaviest micro-batch; `quantize` is None, `nf4` or `int8`; `whole_logits` is True for
    a trainer that forms the logits of every token at once, as other trainers do. The offloads are ZeRO-Offload's to the host:
    formulas alone, no setting turns them on.
    """

    tokens: int
    labels: int
    precision: str
    zero_stage: int
    ranks: int
    gradient_checkpointing: bool = False
    device: Literal["cpu", "cuda"] = "cpu"
    quantize: str | None = None
    offload_optimizer: bool = False
    offload_parameters: bool = False
    whole_logits: bool = False


def estimate(base: BaseModel, spec: AdapterSpec, setting: Setting) -> Range:
    """Peak memory of one rank in GiB: resident on a CPU, allocated and CUDA's context on a GPU."""
    expected = sum(parts(base, spec, setting).values())
    return Range(round(LOW * expected, 2), round(expected, 2), round(HIGH * expected, 2))


def parts(base: BaseModel, spec: AdapterSpec, setting: Setting) -> dict[str, float]:
    """The terms of the sum, GiB by name."""
    return {
        "process": PROCESS_GIB[setting.device],
        "weights": _weights(base, setting) / GIB,
        "adapter": _adapter(spec.num_parameters, setting) / GIB,
        "activations": _activations(base, spec, setting) / GIB,
        "heap": _heap(base, spec, setting) / GIB,
        "experts": _experts(base, spec, setting) / GIB,
        "logits": 3 * 4 * _logits(base, setting) / GIB,
    }


def _logits(base: BaseModel, setting: Setting) -> int:
    """How many logits are held at once."""
    if setting.whole_logits:
        return setting.tokens * base.vocab_size
    return min(setting.labels * base.vocab_size, CHUNK_ELEMENTS)


def weight_bytes(base: BaseModel, precision: str, quantize: str | None) -> float:
    """Bytes of the whole base model; embedding and output layer are not quantised."""
    size = BYTES[precision]
    if quantize is None:
        return size * base.num_parameters
    kept = base.vocab_size * base.hidden_size
    each = {"int8": 1 + 4 / base.hidden_size, "nf4": 0.5 + 4 / 64}[quantize]
    return size * kept + each * max(0, base.num_parameters - kept)


def _weights(base: BaseModel, setting: Setting) -> float:
    whole = weight_bytes(base, setting.precision, setting.quantize)
    if setting.zero_stage < 3:
        return whole
    part = 0.0 if setting.offload_parameters else whole / setting.ranks
    gathered = LIVE_PARAMETERS + base.vocab_size * base.hidden_size
    return part + whole * min(1.0, gathered / max(1, base.num_parameters))


def _adapter(parameters: int, setting: Setting) -> float:
    stage, ranks = setting.zero_stage, setting.ranks
    gradients = 4 * parameters / (ranks if stage >= 2 else 1)
    kept = 0 if setting.offload_optimizer else optimizer_bytes(parameters, stage, ranks)
    return 4 * parameters + gradients + kept


def optimizer_bytes(parameters: int, stage: int, ranks: int) -> float:
    """Bytes of the moments, and from ZeRO-1 on of the master copy, that a rank keeps."""
    return 8 * parameters if stage == 0 else (8 + 4) * parameters / ranks


def _experts(base: BaseModel, spec: AdapterSpec, setting: Setting) -> float:
    return BYTES[setting.precision] * base.num_parameters if spec.peft_arguments.get("target_parameters") else 0.0


def _activations(base: BaseModel, spec: AdapterSpec, setting: Setting) -> float:
    size, width = BYTES[setting.precision], base.hidden_size
    block = kept_bytes(base, spec, setting.precision)
    if setting.gradient_checkpointing:
        return setting.tokens * (base.num_hidden_layers * width * size + 2 * block)
    return setting.tokens * (base.num_hidden_layers + 1) * block


def _heap(base: BaseModel, spec: AdapterSpec, setting: Setting) -> float:
    if setting.device != "cpu":
        return 0.0
    kept = HEAP * setting.tokens * base.num_hidden_layers * kept_bytes(base, spec, setting.precision)
    gathers = setting.zero_stage == 3 and setting.ranks > 1
    if not gathers or BYTES[setting.precision] * base.hidden_size * _inner(base)[1] >= MMAP_BYTES:
        return kept
    return kept + HOLES * weight_bytes(base, setting.precision, setting.quantize)


def kept_bytes(base: BaseModel, spec: AdapterSpec, precision: str) -> float:
    """Bytes a token that one block keeps for its backward pass."""
    width, size = base.hidden_size, BYTES[precision]
    a, inner = _inner(base)
    kept = size * (6 * width + a + inner)
    if precision == "bf16":
        kept += 4 * (6 * width + inner)
    if spec.peft_arguments.get("use_dora"):
        kept += size * 2 * (3 * width + 2 * inner)
    return kept


def _inner(base: BaseModel) -> tuple[float, float]:
    """`a` = P_block / d, and the width f of the MLP."""
    width = base.hidden_size
    a = (base.num_parameters - base.vocab_size * width) / (base.num_hidden_layers * width)
    return a, max(0.0, (a - 8 / 3 * width) / 3)
