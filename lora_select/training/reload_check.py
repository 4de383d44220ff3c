"""Proof after saving: a new process loads the folder with plain PEFT on the pristine base and compares."""

import subprocess
import sys
from pathlib import Path

from lora_select import records
from lora_select.errors import WorldError
from lora_select.records import Adapter, BaseModel, Proof
from lora_select.training.reload_worker import PROOF
from lora_select.training.supervisor.launch import clean_environment

TIMEOUT_SECONDS = 1800


def prove(base: BaseModel, adapter_folder: Path, *, precision: str, folder: Path) -> Proof:
    """Prove an adapter in a new process.

    Args:
        base: the pristine base model.
        adapter_folder: the training stage's folder.
        precision: what it was trained in; the base is loaded in the same, or the logits would differ by rounding.
        folder: where the process writes its result.

    Returns:
        The proof; a failed one has `passed` False and says why in `faults`.

    Raises:
        WorldError: the process died before it could say anything.
    """
    command = [
        sys.executable,
        "-m",
        "lora_select.training.reload_worker",
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
    return records.read(Proof, folder / PROOF)


def refuse_unproven(proof: Proof, adapter: Adapter) -> None:
    """Stop before an adapter that is not what was trained is judged or registered.

    Raises:
        WorldError: the proof failed.
    """
    if not proof.passed:
        raise WorldError(
            f"the saved adapter {adapter.digest[:12]} is not the trained model: {'; '.join(proof.faults)}; it is kept in the "
            "run's folder and not registered"
        )
