"""vLLM: plain LoRA in slots of fixed sizes, 16 unless it is told otherwise."""

import shlex
from pathlib import Path

from lora_select.serving.engine import Engine

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""`MaxLoRARanks` in vLLM 0.33.0, `vllm/config/lora.py`."""


def command(folder: Path, base: str, rank: int) -> str:
    """The server, with a slot that holds the rank; its default holds 16."""
    return (
        f"vllm serve {shlex.quote(base)} --enable-lora --max-lora-rank {ENGINE.slot(rank)} "
        f"--lora-modules {shlex.quote(f'adapter={folder}')}"
    )


ENGINE = Engine(
    "vllm",
    "vLLM",
    "lora",
    RANKS,
    command,
    # 0.33.0 reads both patterns (`PEFTHelper.get_rank_and_scaling`); earlier versions dropped them in silence.
    ignores=frozenset({"rank_pattern", "alpha_pattern"}),
    refuses=frozenset(
        {"peft_type", "use_dora", "lora_bias", "bias", "modules_to_save", "init_lora_weights", "layer_replication"}
    ),
    checked="its own reader of adapter_config.json (0.33.0) takes the exported folder and refuses the others; never loaded on a GPU",
)
