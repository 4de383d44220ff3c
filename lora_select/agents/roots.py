"""Which paths an agent may name."""

import os
from collections.abc import Sequence
from pathlib import Path

from lora_select.data.reading.source_files import is_pattern
from lora_select.errors import InputError


def inside(path: str, roots: Sequence[Path]) -> Path:
    """The path, links followed, when it and every link below it lead into one of the roots; a relative one is taken from the first root.

    Raises:
        InputError: it, or a link below it, leads outside of them.
    """
    found = (roots[0] / Path(path).expanduser()).resolve()
    for place in (found, *_links(found)):
        if not any(place.resolve().is_relative_to(root.resolve()) for root in roots):
            allowed = ", ".join(str(root) for root in roots)
            raise InputError(
                f"{path} is outside of what this server may read and write ({allowed}); start it with another --root"
            )
    return found


def source(name: str, roots: Sequence[Path]) -> str:
    """A model or dataset: a path inside the roots, `sample:NAME`, or the id of something on the hub.

    Raises:
        InputError: it is a path outside the roots, or a pattern.
    """
    if name.startswith("sample:"):
        return name
    if is_pattern(name):
        raise InputError(f"{name} is a pattern, whose matches this server cannot bound; name a file or a folder")
    looks_local = name.startswith((".", "/", "~")) or (roots[0] / name).exists() or Path(name).exists()
    return str(inside(name, roots)) if looks_local or ".." in Path(name).parts else name


def _links(folder: Path) -> list[Path]:
    """The links below a folder, none of them followed."""
    places = [Path(parent) / name for parent, folders, files in os.walk(folder) for name in (*folders, *files)]
    return [place for place in places if place.is_symlink()]
