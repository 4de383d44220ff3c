"""What a dataset is that somebody registers: by content, so that an event names bytes and not only a place."""

from dataclasses import dataclass
from pathlib import Path

from lora_select.data.reading.source_files import list_files, source_digest


@dataclass(frozen=True)
class DatasetManifest:
    """A dataset's name, absolute path, digest (`source_digest`), files and bytes."""

    name: str
    path: str
    digest: str
    files: int
    size: int


def manifest(path: Path) -> DatasetManifest:
    """Look at a dataset.

    Raises:
        InputError: the path is not there or holds no data file.
    """
    path = path.expanduser()
    listed = list_files(path)
    return DatasetManifest(
        name=path.stem,
        path=str(path.resolve()),
        digest=source_digest(str(path)),
        files=len(listed),
        size=sum(file.stat().st_size for file in listed),
    )
