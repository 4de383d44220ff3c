"""Log operations that MLflow has not taken yet: a file of JSON lines that outlives the process.

Operations are repeatable, so each is sent at least once and counts once.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lora_select.records import append_line, write_text

Operation = Mapping[str, Any]


def append(path: Path, operation: Operation) -> None:
    """Add one operation at the end, on disk before this returns."""
    append_line(path, operation)


def read(path: Path) -> list[Operation]:
    """All operations in order; a torn last line (a kill in mid-write) is left out."""
    if not path.exists():
        return []
    operations = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            operations.append(json.loads(line))
        except ValueError:
            continue
    return operations


def drain(path: Path, send: Callable[[Operation], bool]) -> int:
    """Send in order until `send` returns False; keep the rest. Returns how many are left.

    A kill in mid-drain repeats what was sent in this call, which changes nothing.
    """
    waiting = read(path)
    sent = 0
    while sent < len(waiting) and send(waiting[sent]):
        sent += 1
    left = waiting[sent:]
    if not left:
        path.unlink(missing_ok=True)
    elif sent:
        write_text(path, "".join(json.dumps(op, ensure_ascii=False, sort_keys=True) + "\n" for op in left))
    return len(left)
