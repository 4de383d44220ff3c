"""SGLang: plain LoRA; it divides alpha by r whatever the folder says."""

import shlex
from pathlib import Path

from lora_select.serving.engine import Engine


def command(folder: Path, base: str, rank: int) -> str:
    """The server; without `--max-lora-rank` it takes the largest rank of the adapters that it starts with."""
    return (
        f"python -m sglang.launch_server --model-path {shlex.quote(base)} --enable-lora --max-lora-rank {rank} "
        f"--lora-paths {shlex.quote(f'adapter={folder}')}"
    )


ENGINE = Engine(
    "sglang",
    "SGLang",
    "lora",
    (),
    command,
    ignores=frozenset(
        {"use_rslora", "rank_pattern", "alpha_pattern", "bias", "lora_bias", "modules_to_save", "init_lora_weights"}
    ),
    refuses=frozenset({"peft_type", "use_dora", "target_modules"}),
    checked="its own reader of adapter_config.json (0.5.23) takes the exported folder; never loaded on a GPU",
)
