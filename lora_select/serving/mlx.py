"""MLX-LM: adapters in a layout of its own, factors transposed, an explicit scale in place of alpha / r."""

import shlex
from pathlib import Path

from lora_select.serving.engine import Engine


def command(folder: Path, base: str, rank: int) -> str:  # noqa: ARG001
    """The server."""
    return f"mlx_lm.server --model {shlex.quote(base)} --adapter-path {shlex.quote(str(folder))}"


ENGINE = Engine(
    "mlx",
    "MLX-LM",
    "mlx",
    (),
    command,
    ignores=frozenset(),
    refuses=frozenset({"peft_type", "use_dora", "bias", "lora_bias", "modules_to_save"}),
    checked="mlx-lm 0.32.2 on a CPU runs the exported folder: logits of 20 prompts against transformers and PEFT",
)
