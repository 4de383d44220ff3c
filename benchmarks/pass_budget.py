"""How few microbatches the learning rate needs: LoRA's displacement from 4, 8, 16 and 32 microbatches of two rows, forward passes only.

python -m benchmarks.pass_budget      # writes results/pass_budget.json; a setting that is there is not run again
"""

import json
import math
import platform
from collections.abc import Iterator
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.selection.sweep import tasks
from benchmarks.selection.sweep.subject import load
from benchmarks.selection.sweep.table import tables
from lora_select.data.microbatches import draw
from lora_select.records import write_text
from lora_select.selection.calibration import model_factor, shipped
from lora_select.selection.learning_rate import REFERENCE_RANK
from lora_select.spectral.capture import TokenMask, select
from lora_select.spectral.linear_layers import linear_layers
from lora_select.variants import LoRA

RESULTS = Path(__file__).parent / "results" / "pass_budget.json"
COUNTS, SEEDS, ROWS_EACH = (4, 8, 16, 32), (0, 1, 2), 2


def measure(model: Any, batches: list[dict[str, Any]]) -> Iterator[float]:
    """LoRA's displacement at r 16, the geometric mean over linear layers, after each microbatch."""
    import torch

    layers = linear_layers(model)
    sums = {name: [0.0, 0.0] for name in layers}
    mask: list[TokenMask] = []

    def hook(name: str) -> Any:
        def seen(_module: Any, inputs: Any, output: Any) -> None:
            for place, tensor in enumerate((inputs[0], output)):
                fits = tensor.shape[:-1] == mask[0].shape
                rows = select(tensor, mask[0] if fits else None)
                weights = mask[0].counted if fits else 1.0
                sums[name][place] += float((rows.float().square().sum(-1) * weights).sum())

        return seen

    with ExitStack() as stack, torch.no_grad():
        for name, module in layers.items():
            stack.callback(module.register_forward_hook(hook(name)).remove)
        for batch in batches:
            mask[:] = [TokenMask(batch["attention_mask"])]
            model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
            yield math.exp(sum(_log_displacement(layers[name], *pair) for name, pair in sums.items()) / len(sums))


def _log_displacement(layer: Any, inputs: float, outputs: float) -> float:
    """Of :func:`lora_select.variants.base.random_start_displacement`; both sums are over the same tokens."""
    moved = LoRA(REFERENCE_RANK).scale ** 2 * REFERENCE_RANK * inputs / (3 * layer.in_features)
    return 0.5 * math.log(moved / (outputs / layer.out_features))


def _off(displacement: float, full: float) -> float:
    """How far the learning rate is from that of all microbatches, as a share."""
    return abs(model_factor(displacement, shipped()) / model_factor(full, shipped()) - 1)


def main() -> None:
    import torch

    torch.set_num_threads(1)
    known = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {"settings": {}}
    for table in sorted(tables(), key=lambda table: (table.setting.model, table.setting.task)):
        setting = table.setting
        if setting.name in known["settings"] or setting.rows != 192 or setting.task in tasks.CONTROLS:
            continue
        try:
            subject = load(setting.model, tasks.find(setting.task), setting.rows)
        except ValueError as error:
            print(f"{setting.name}: left out: {error}", flush=True)
            continue
        moved = {}
        for seed in SEEDS:
            batches = draw(
                subject.rows.train, microbatches=max(COUNTS), size=ROWS_EACH, seed=seed, pad_id=subject.pad_id
            )
            found = list(measure(subject.model.eval(), batches))
            moved[seed] = {n: round(found[n - 1], 5) for n in COUNTS}
        off = {n: round(max(_off(one[n], one[max(COUNTS)]) for one in moved.values()), 5) for n in COUNTS[:-1]}
        known["settings"][setting.name] = {"displacement_by_seed_and_microbatches": moved, "rate_off_from_32": off}
        known["machine"] = f"{platform.machine()}, Python {platform.python_version()}"
        known["versions"] = {name: metadata.version(name) for name in ("torch", "transformers")}
        write_text(RESULTS, json.dumps(known, indent=1) + "\n")
        print(f"{setting.name}: {moved[0][max(COUNTS)]:.3g}; learning rate off by at most {off}", flush=True)


if __name__ == "__main__":
    main()
