"""The new process of an export's check: `python -m lora_select.export.check_process BASE FOLDER lora|merged`."""

import json
import sys
from pathlib import Path

from lora_select import environment, models

LOGITS = "reference_logits.safetensors"


def main(base: str, folder: Path, kind: str) -> None:
    """Load what was exported with plain PEFT or plain transformers and print what it does on the probe."""
    environment.leave_out(None)
    import torch
    from peft import PeftModel
    from safetensors.torch import load_file

    probe = load_file(folder / LOGITS)
    inputs = {"input_ids": probe["ids"], "attention_mask": torch.ones_like(probe["ids"]), "use_cache": False}
    with torch.no_grad():
        pristine = models.load_model(base)
        before = pristine(**inputs).logits.float()
        model = PeftModel.from_pretrained(pristine, str(folder)) if kind == "lora" else models.load_model(str(folder))
        found = model.eval()(**inputs).logits.float()
    print(json.dumps([float((found - probe["logits"]).abs().max()), float((probe["logits"] - before).abs().max())]))


def compare(printed: str) -> tuple[float, float]:
    """The two numbers that :func:`main` printed last: the export's difference to the adapter, the adapter's to the base."""
    difference, change = json.loads(printed.strip().splitlines()[-1])
    return difference, change


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
