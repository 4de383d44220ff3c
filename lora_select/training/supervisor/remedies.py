"""The remedies of a training folder: an audited list that outlives every process."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from lora_select.records import Remedy, write_text
from lora_select.training import job

_LIST: TypeAdapter[tuple[Remedy, ...]] = TypeAdapter(tuple[Remedy, ...])


def read(folder: Path) -> tuple[Remedy, ...]:
    """Every remedy so far, in order."""
    path = folder / job.REMEDIES
    return _LIST.validate_json(path.read_bytes()) if path.is_file() else ()


def write(folder: Path, history: Sequence[Remedy]) -> None:
    """Write the list, before the remedy is used."""
    plain: Any = _LIST.dump_python(tuple(history), mode="json")
    write_text(folder / job.REMEDIES, json.dumps(plain, indent=2, sort_keys=True) + "\n")
