"""llama.cpp: base and adapter as GGUF; one alpha for all tensors, each divided by its own rank."""

import shlex
from collections.abc import Mapping
from pathlib import Path

from lora_select.serving.engine import Engine

ARCHITECTURES: Mapping[str, tuple[str, bool]] = {
    "LlamaForCausalLM": ("llama", True),
    "MistralForCausalLM": ("llama", True),
    "SmolLM3ForCausalLM": ("smollm3", True),
    "Qwen2ForCausalLM": ("qwen2", False),
    "Qwen3ForCausalLM": ("qwen3", False),
    "GemmaForCausalLM": ("gemma", False),
    "Gemma3ForCausalLM": ("gemma3", False),
}
"""Name in the base's config -> (GGUF's architecture, whether rows of q and k are reordered for its rotary embedding)."""
ADAPTER = "adapter.gguf"


def command(folder: Path, base: str, rank: int) -> str:  # noqa: ARG001
    """The server; the base must be a GGUF of the same model."""
    gguf = base if base.endswith(".gguf") else "BASE.gguf"
    return f"llama-server -m {shlex.quote(gguf)} --lora {shlex.quote(str(folder / ADAPTER))}"


ENGINE = Engine(
    "llama.cpp",
    "llama.cpp",
    "gguf",
    (),
    command,
    ignores=frozenset({"use_rslora", "alpha_pattern", "init_lora_weights"}),
    refuses=frozenset({"peft_type", "use_dora", "bias", "lora_bias", "modules_to_save"}),
    checked="llama-cpp-python 0.3.36 runs the exported GGUF: logits of 20 prompts against transformers and PEFT",
    architectures=frozenset(ARCHITECTURES),
)
