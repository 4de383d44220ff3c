"""The check after saving: a new process loads the adapter with plain PEFT on the pristine base and compares.

That process is `python -m lora_select.training.reload_check BASE ADAPTER_STAGE PRECISION OUT`. What retention made of the adapter is checked
in the same way: its stage's folder holds a result and logits of its own.
"""

import math
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_select import environment, models, records
from lora_select.errors import WorldError
from lora_select.records import Adapter, BaseModel, ReloadCheck
from lora_select.training.job import JOB, RESULT, read_job
from lora_select.training.supervisor.launch import clean_environment

PROOF = "proof-result.json"
TOLERANCE = {"fp32": 2e-3, "bf16": 0.25}
"""Largest allowed difference of a logit. Logits are of order 10 to 30. In fp32 reductions in another order and the 2r form
of a start that changes the base differ by some 1e-4; in bf16 (8 bits of mantissa) one rounding of a logit is 0.06 to 0.12."""
TIMEOUT_SECONDS = 1800


def check_reload(base: BaseModel, adapter_folder: Path, *, precision: str, folder: Path) -> ReloadCheck:
    """Check in a new process that the saved adapter is what was trained.

    Args:
        base: the pristine base model.
        adapter_folder: the training stage's folder.
        precision: what it was trained in; the base is loaded in the same, or the logits would differ by rounding.
        folder: where the process writes its result.

    Returns:
        The result; a failed one has `passed` False and says why in `faults`.

    Raises:
        WorldError: the process died before it could say anything.
    """
    command = [
        sys.executable,
        "-m",
        "lora_select.training.reload_check",
        base.path,
        str(adapter_folder),
        precision,
        str(folder),
    ]
    (folder / PROOF).unlink(missing_ok=True)
    run = subprocess.run(
        command, env=clean_environment(), capture_output=True, text=True, check=False, timeout=TIMEOUT_SECONDS
    )
    if not (folder / PROOF).is_file():
        last = "\n  ".join(run.stderr.strip().splitlines()[-5:])
        raise WorldError(f"the proof ended with code {run.returncode} before it had a result:\n  {last}")
    return records.read(ReloadCheck, folder / PROOF)


def refuse_failed(proof: ReloadCheck, adapter: Adapter) -> None:
    """Stop before an adapter that is not what was trained is judged or registered.

    Raises:
        WorldError: the proof failed.
    """
    if not proof.passed:
        raise WorldError(
            f"the saved adapter {adapter.digest[:12]} is not the trained model: {'; '.join(proof.faults)}; it is kept in the "
            "run's folder and not registered"
        )


def main(base: str, stage: Path, precision: str, out: Path) -> None:
    """Load, compare, write the proof."""
    environment.leave_out(read_job(stage / JOB).quantized_base)
    records.write(out / PROOF, examine(base, stage, precision))


def examine(base: str, stage: Path, precision: str) -> ReloadCheck:
    """What the adapter folder of a training stage really is."""
    from peft import PeftModel
    from safetensors.torch import load_file

    adapter = records.read(Adapter, stage / RESULT)
    folder = stage / adapter.directory
    faults = [f"{file.path} was changed after training" for file in adapter.files if _changed(stage, file)]
    tensors = load_file(folder / "adapter_model.safetensors")
    finite = all(bool(tensor.isfinite().all()) for tensor in tensors.values())
    factors = [tensor for name, tensor in tensors.items() if "lora_B" in name]
    nonzero = not factors or any(bool(tensor.any()) for tensor in factors)  # other kinds: see `function_change`
    faults += [] if tensors else ["the adapter holds no tensor"]
    faults += [] if finite else ["a tensor holds NaN or infinity"]
    faults += [] if nonzero else ["B is zero in every layer: training changed nothing"]
    logits = load_file(stage / adapter.reference_logits.path)
    held = read_job(stage / JOB).quantized_base
    model = models.load_model(base, dtype="bfloat16" if precision == "bf16" else "float32", quantize=held)
    pristine = logits_at(model, logits)
    loaded = logits_at(PeftModel.from_pretrained(model, str(folder)).eval(), logits)
    wanted = [logits[f"logits.{index}"] for index in range(len(loaded))]
    difference = max(_largest(a, b) for a, b in zip(loaded, wanted, strict=True))
    change = max(_largest(a, b) for a, b in zip(loaded, pristine, strict=True))
    tolerance = TOLERANCE[precision]
    if not difference <= tolerance:
        faults.append(f"logits differ from the trained model's by {difference:.3g}, over the limit of {tolerance:g}")
    if change == 0:
        faults.append("the model with the adapter is the base model: its logits are equal")
    return ReloadCheck(
        adapter_digest=adapter.digest,
        tensors=len(tensors),
        finite=finite,
        nonzero_b=nonzero,
        max_logit_difference=_json_safe(difference),
        tolerance=tolerance,
        function_change=_json_safe(change),
        passed=not faults,
        faults=tuple(faults),
    )


def _changed(stage: Path, file: records.FileRef) -> bool:
    path = stage / file.path
    return not path.is_file() or records.sha256_file(path) != file.sha256


def logits_at(model: Any, reference: Mapping[str, Any]) -> list[Any]:
    """The model's logits (places, vocabulary), float32 in main memory, of each row `ids.N` at its `places.N`."""
    import torch

    found = []
    with torch.no_grad():
        for index in range(len(reference) // 3):
            ids = reference[f"ids.{index}"][None].to(next(iter(model.parameters())).device)
            output = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
            found.append(output[0].cpu()[reference[f"places.{index}"]].float())
    return found


def _largest(a: Any, b: Any) -> float:
    return float((a - b).abs().max())


def _json_safe(value: float) -> float:
    """A number that JSON can hold; NaN logits count as the largest difference there is."""
    return value if math.isfinite(value) else sys.float_info.max


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
