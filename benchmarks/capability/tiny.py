"""Tiny models of five architectures with random weights, and what is needed to adapt them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from lora_select.models import quantization
from lora_select.records import AdapterSpec, Constraints, Range, TrainingPlan
from lora_select.variants.base import Context, Variant

LLAMA_LIKE = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
TARGETS: Mapping[str, tuple[str, ...]] = {
    "llama": LLAMA_LIKE,
    "qwen": LLAMA_LIKE,
    "gemma": LLAMA_LIKE,
    "gpt2": ("c_attn", "c_proj", "c_fc"),
    "bert": ("query", "key", "value", "dense"),
}
RATE = 1e-2
"""Large, so that three steps move the function well above rounding."""


@final
@dataclass(frozen=True)
class Bench:
    """A setting: architecture, how the base is held, and the folder of its files (base, spectral record)."""

    architecture: str
    base: str
    folder: Path

    @property
    def quantize(self) -> str | None:
        """`nf4`, `int8` or None."""
        return self.base if self.base in {"nf4", "int8"} else None

    def load(self, *, plain: bool = False) -> Any:
        """The pristine base, in evaluation mode, always the same; `plain` in fp32 whatever the setting."""
        import torch

        held = "fp32" if plain else self.base
        dtype = torch.bfloat16 if held == "bf16" else torch.float32
        more = {}
        if held in {"nf4", "int8"}:
            more = {"quantization_config": quantization(held, "float32"), "device_map": {"": "cpu"}}
        return _class(self.architecture).from_pretrained(self.folder, dtype=dtype, local_files_only=True, **more).eval()

    def batch(self) -> dict[str, Any]:
        """Two rows of 12 tokens with labels."""
        import torch

        ids = torch.randint(4, 250, (2, 12), generator=torch.Generator().manual_seed(5))
        labels = torch.tensor([0, 1]) if self.architecture == "bert" else ids
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def make(architecture: str, folder: Path) -> None:
    """Write a tiny model of the architecture into `folder`: the same bytes every time."""
    import torch

    torch.manual_seed(0)
    _class(architecture)(_config(architecture)).save_pretrained(folder)


def _class(architecture: str) -> Any:
    import transformers

    names = {
        "llama": "LlamaForCausalLM",
        "qwen": "Qwen2ForCausalLM",
        "gemma": "Gemma3ForCausalLM",
        "gpt2": "GPT2LMHeadModel",
        "bert": "BertForSequenceClassification",
    }
    return getattr(transformers, names[architecture])


def _config(architecture: str) -> Any:
    import transformers as package

    transformers: Any = package  # its configs take what their annotations do not say
    size: dict[str, Any] = {"vocab_size": 260, "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    size |= {"intermediate_size": 256, "max_position_embeddings": 64}
    grouped: dict[str, Any] = size | {"num_key_value_heads": 2, "initializer_range": 0.1, "head_dim": 32}
    if architecture == "llama":
        return transformers.LlamaConfig(**grouped)
    if architecture == "qwen":
        return transformers.Qwen2Config(**grouped)
    if architecture == "gemma":
        return transformers.Gemma3TextConfig(**grouped)
    if architecture == "gpt2":
        return transformers.GPT2Config(
            vocab_size=260, n_positions=64, n_embd=128, n_layer=2, n_head=4, initializer_range=0.1,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )  # fmt: skip
    return transformers.BertConfig(
        **size | {"num_labels": 3}, initializer_range=0.1, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )


def layers_of(model: Any, architecture: str) -> tuple[tuple[str, int, int], ...]:
    """Targeted layers as (name, m, n)."""
    found = []
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in TARGETS[architecture] and hasattr(module, "weight"):
            m, n = getattr(module, "out_features", None), getattr(module, "in_features", None)
            if m is None or n is None:
                n, m = module.weight.shape  # Conv1D
            found.append((name, int(m), int(n)))
    return tuple(found)


def context(layers: tuple[tuple[str, int, int], ...]) -> Context:
    """Nothing asked but what the layers themselves rule out; quantisation and ZeRO are tried, not looked up."""
    return Context.of(Constraints(), layers, directions=16)


def spec(variant: Variant, architecture: str, layers: tuple[tuple[str, int, int], ...]) -> AdapterSpec:
    """What the worker would be told, on every targeted layer."""
    return variant.spec(
        targets="all-linear",
        target_modules=TARGETS[architecture],
        learning_rate=RATE,
        num_parameters=sum(variant.num_parameters((m, n)) for _, m, n in layers),
        placed={"target_modules": list(TARGETS[architecture])},
    )


def blank_spec() -> AdapterSpec:
    """A specification of nothing, to be replaced."""
    return AdapterSpec("none", "none", (), 0, 0, 0.0, "default", RATE, "LoraConfig", {}, {}, 0)


def plan(zero_stage: int = 0) -> TrainingPlan:
    """A plan of a few steps, for the optimizer and the ranks."""
    none = Range(0.0, 0.0, 0.0)
    return TrainingPlan(
        device="cpu",
        num_processes=2,
        zero_stage=zero_stage,
        precision="fp32",
        micro_batch_size=1,
        gradient_accumulation_steps=1,
        effective_batch_size=2,
        epochs=1.0,
        total_steps=3,
        warmup_steps=0,
        learning_rate=RATE,
        lr_schedule="constant",
        weight_decay=0.0,
        max_grad_norm=0.0,
        checkpoint_every=100,
        keep_checkpoints=1,
        gradient_checkpointing=False,
        seed=0,
        threads_per_process=1,
        memory_gib=none,
        minutes=none,
        disk_gib=0.0,
        reasons=(),
    )
