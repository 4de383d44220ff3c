"""Croissant 1.0 of the dataset: its canonical Parquet files, their digests and columns; made and checked by `mlcroissant`."""

import logging
import re
from pathlib import Path
from typing import Any

from lora_select.errors import library
from lora_select.evidence.inputs import EvidenceInputs
from lora_select.records import FileRef

VERSION = "1.0.0"


def dataset_card(inputs: EvidenceInputs, columns: dict[str, list[str]]) -> dict[str, Any]:
    """Croissant's JSON-LD.

    Args:
        inputs: the run.
        columns: file name of a split -> its text columns, as `parquet_columns` reads them.

    Raises:
        MissingLibraryError: mlcroissant is not installed.
        ValueError: the description is not valid Croissant.
    """
    croissant = library("mlcroissant", "mlcroissant")
    splits = {"train": inputs.dataset.train_file, "eval": inputs.dataset.eval_file}
    level = logging.getLogger("absl").level
    logging.getLogger("absl").setLevel(logging.ERROR)  # it logs what is recommended and not there
    try:
        metadata = croissant.Metadata(
            name=_identifier(inputs.dataset.name),
            description=f"{inputs.dataset.train_rows} training and {inputs.dataset.eval_rows} held-out rows, canonical form of "
            f"{inputs.dataset.name}; content digest {inputs.dataset.digest}",
            url=f"urn:sha256:{inputs.dataset.digest}",
            version=VERSION,
            date_published=inputs.made.replace(tzinfo=None),
            distribution=[_file(croissant, ref) for ref in splits.values()],
            record_sets=[_records(croissant, name, ref, columns.get(ref.path, [])) for name, ref in splits.items()],
        )
        if metadata.issues.errors:
            raise ValueError(f"the Croissant description is not valid: {metadata.issues.report()}")
        return metadata.to_json()
    except croissant.ValidationError as error:
        raise ValueError(f"the Croissant description is not valid: {error}") from error
    finally:
        logging.getLogger("absl").setLevel(level)


def parquet_columns(folder: Path, inputs: EvidenceInputs) -> dict[str, list[str]]:
    """The columns of the canonical files that are in `folder`; a file that is not there has none."""
    import pyarrow.parquet

    found = {}
    for ref in (inputs.dataset.train_file, inputs.dataset.eval_file):
        if (folder / ref.path).is_file():
            found[ref.path] = list(pyarrow.parquet.read_schema(folder / ref.path).names)
    return found


def _file(croissant: Any, ref: FileRef) -> Any:
    return croissant.FileObject(
        id=ref.path,
        name=ref.path,
        content_url=ref.path,
        content_size=f"{ref.size} B",
        encoding_formats=["application/x-parquet"],
        sha256=ref.sha256,
    )


def _records(croissant: Any, name: str, ref: FileRef, columns: list[str]) -> Any:
    fields = [
        croissant.Field(
            id=f"{name}/{column}",
            name=column,
            data_types=[croissant.DataType.TEXT],
            source=croissant.Source(file_object=ref.path, extract=croissant.Extract(column=column)),
        )
        for column in columns
    ]
    return croissant.RecordSet(id=name, name=name, description=f"the {name} split", fields=fields)


def _identifier(name: str) -> str:
    """A name as Croissant takes it.

    >>> _identifier("my rows (v2).jsonl")
    'my-rows-v2-jsonl'
    """
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-") or "dataset"
