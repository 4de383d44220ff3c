"""The one door: every form of the evidence into one folder, what is missing said in sentences."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lora_select.audit import signature
from lora_select.audit.signature import ADAPTER_SIGNATURE, EVIDENCE_SIGNATURE, SigningKey
from lora_select.errors import MissingLibraryError
from lora_select.evidence import bom, card, croissant, statement
from lora_select.evidence.inputs import EvidenceInputs
from lora_select.records import EvidenceFiles, FileRef, file_ref, to_json, write_text

FOLDER = "evidence"
NOT_SIGNED = f"nothing was signed: name a private key in {signature.SIGNING_KEY}"


def write_evidence(
    inputs: EvidenceInputs, folder: Path, *, dataset_folder: Path, key: SigningKey | None = None
) -> EvidenceFiles:
    """Write `evidence/` and its signatures into `folder`.

    Args:
        inputs: the run's records.
        folder: the stage's folder; gets `evidence/README.md`, `training.intoto.json`, `bom.cdx.json`, `croissant.json`, `cost.json`
            and, beside it, `adapter.sig` and `evidence.sig`.
        dataset_folder: where the canonical files of the dataset are.
        key: from `signature.signing_key`; None signs nothing.

    Returns:
        What was written; a form whose library is not installed is None and has its sentence in `missing`.

    Raises:
        ValueError: a form came out invalid, which is a fault of this library and never passed on.
        InputError: the key cannot be used.
    """
    place = folder / FOLDER
    place.mkdir(parents=True, exist_ok=True)
    missing: list[str] = []
    write_text(place / "README.md", card.model_card(inputs))
    write_text(place / "cost.json", to_json(inputs.cost))
    made = statement.training_statement(inputs)
    _if_installed(missing, "the in-toto statement was not checked", lambda: statement.check(made))
    _write(place / "training.intoto.json", made)
    parts = _if_installed(missing, "no ML-BOM", lambda: _checked_bom(inputs))
    columns = croissant.parquet_columns(dataset_folder, inputs)
    rows = _if_installed(missing, "no Croissant description", lambda: croissant.dataset_card(inputs, columns))
    for name, document in (("bom.cdx.json", parts), ("croissant.json", rows)):
        if document is None:
            (place / name).unlink(missing_ok=True)
        else:
            _write(place / name, document)
    signed_by = None
    for name in (ADAPTER_SIGNATURE, EVIDENCE_SIGNATURE):
        (folder / name).unlink(missing_ok=True)
    if key is None:
        missing.append(NOT_SIGNED)
    else:
        signed_by = _if_installed(missing, "nothing was signed", lambda: _signed(inputs, folder, key))
    return EvidenceFiles(
        card=file_ref(place / "README.md", folder),
        statement=file_ref(place / "training.intoto.json", folder),
        bom=_reference(place / "bom.cdx.json", folder),
        croissant=_reference(place / "croissant.json", folder),
        adapter_signature=_reference(folder / ADAPTER_SIGNATURE, folder),
        evidence_signature=_reference(folder / EVIDENCE_SIGNATURE, folder),
        adapter_digest=inputs.adapter.digest,
        signed_by=signed_by,
        missing=tuple(missing),
    )


def _checked_bom(inputs: EvidenceInputs) -> dict[str, Any]:
    document = bom.bill_of_materials(inputs)
    bom.check(document)
    return document


def _signed(inputs: EvidenceInputs, folder: Path, key: SigningKey) -> str:
    signature.sign(inputs.adapter_folder, folder / ADAPTER_SIGNATURE, key)
    return signature.sign(folder / FOLDER, folder / EVIDENCE_SIGNATURE, key)


def _if_installed(missing: list[str], what: str, make: Callable[[], Any]) -> Any:
    try:
        return make()
    except MissingLibraryError as error:
        missing.append(f"{what}: {error}")
        return None


def _write(path: Path, document: dict[str, Any]) -> None:
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False, default=_iso)
    write_text(path, text + "\n")


def _iso(value: Any) -> str:
    """Dates, which mlcroissant leaves as they are."""
    return value.isoformat()


def _reference(path: Path, folder: Path) -> FileRef | None:
    return file_ref(path, folder) if path.is_file() else None
