"""The end of a run: logits for the proof, the adapter folder, and the result that is written last."""

import json
from pathlib import Path
from typing import Any

from lora_select import records
from lora_select.data.labels.tokens import read_rows
from lora_select.records import Adapter, Validation, file_ref
from lora_select.training import job
from lora_select.training.worker import checkpoints, model
from lora_select.training.worker.process import Process

CHECK_ROWS = 4
CHECK_POSITIONS = 12


def finish(rank: Process, loss: float, last: int, validation: Validation | None, seconds: float) -> None:
    """Keep some logits for the check, save, and say so last. `last` is the number of steps that were done; the model holds the chosen parameters."""
    import torch.distributed

    rank.beat("probe")
    logits = _reference_logits(rank)
    rank.beat("saving")
    parameters = checkpoints.whole_parameters(rank.engine, rank.plan.zero_stage)
    parameters |= model.frozen_parts(rank.engine.module, rank.plan.zero_stage)
    if not rank.is_first:
        torch.distributed.barrier()
        return
    records.finite(loss, "the last training loss")
    folder = rank.folder
    _save_logits(folder / job.REFERENCE_LOGITS, logits)
    target = folder / job.ADAPTER
    export = model.save(rank.engine.module, rank.job, target, parameters | _buffers(rank.engine.module))
    files = tuple(
        file_ref(path, folder) for path in sorted(target.iterdir()) if path.suffix in {".json", ".safetensors"}
    )
    steps = [json.loads(line) for line in (folder / job.METRICS).read_text().splitlines()]
    adapter = Adapter(
        spec=rank.job.spec,
        directory=job.ADAPTER,
        files=files,
        digest=next(file.sha256 for file in files if file.path.endswith(".safetensors")),
        reference_logits=file_ref(folder / job.REFERENCE_LOGITS, folder),
        metrics_file=file_ref(folder / job.METRICS, folder),
        steps=last,
        final_loss=loss,
        tokens=rank.tokens,
        label_tokens=rank.label_tokens,
        seconds=sum(step["tokens"] / step["tokens_per_second"] for step in steps),
        peak_memory_gib=max(step["memory_gib"] for step in steps),
        num_processes=rank.world,
        zero_stage=rank.plan.zero_stage,
        resumed_from=tuple(rank.resumed),
        export=export,
        validation=validation,
        remedies=job.read_remedies(folder),
    )
    records.write(folder / job.RESULT, adapter)
    print(f"finished after {seconds:.0f} s in this process", flush=True)
    torch.distributed.barrier()


def _buffers(network: Any) -> dict[str, Any]:
    """What an adapter keeps beside its parameters (VeRA's banks, DeLoRA's norms), by name: PEFT picks what it saves."""
    trained = dict(network.named_parameters())
    return {name: tensor for name, tensor in network.state_dict().items() if name not in trained}


def _reference_logits(rank: Process) -> dict[str, Any]:
    """Logits of the trained model at a few label positions of held-out rows, one row a batch so that nothing is padded."""
    import torch

    network = rank.engine.module.eval()
    found: dict[str, Any] = {}
    with torch.no_grad():
        for index, row in enumerate(read_rows(Path(rank.job.check_tokens))[:CHECK_ROWS]):
            ids = torch.tensor([row.input_ids], device=rank.device)
            places = [i - 1 for i, is_label in enumerate(row.label_mask) if is_label][:CHECK_POSITIONS]
            logits = network(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0, places]
            found[f"ids.{index}"] = ids[0].cpu()
            found[f"places.{index}"] = torch.tensor(places)
            found[f"logits.{index}"] = logits.float().cpu().contiguous()
    return found


def _save_logits(path: Path, logits: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    save_file(logits, path)
