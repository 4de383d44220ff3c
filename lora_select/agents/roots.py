"""Which paths an agent may name."""

from collections.abc import Sequence
from pathlib import Path

from lora_select.errors import InputError


def inside(path: str, roots: Sequence[Path]) -> Path:
    """The path, links followed, when it lies in one of the roots; a relative one is taken from the first root.

    Raises:
        InputError: it lies outside of them.
    """
    found = (roots[0] / Path(path).expanduser()).resolve()
    if any(found.is_relative_to(root.resolve()) for root in roots):
        return found
    allowed = ", ".join(str(root) for root in roots)
    raise InputError(
        f"{path} is outside of what this server may read and write ({allowed}); start it with another --root"
    )


def source(name: str, roots: Sequence[Path]) -> str:
    """A model or dataset: a path inside the roots, `sample:NAME`, or the id of something on the hub.

    Raises:
        InputError: it is a path outside the roots.
    """
    if name.startswith("sample:"):
        return name
    looks_local = name.startswith((".", "/", "~")) or (roots[0] / name).exists() or Path(name).exists()
    return str(inside(name, roots)) if looks_local or ".." in Path(name).parts else name
