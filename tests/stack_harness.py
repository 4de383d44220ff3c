"""The stack as processes, driven by its own command, in a folder that PostgreSQL's user gets through."""

import contextlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]


@contextlib.contextmanager
def home_folder() -> Iterator[Path]:
    """A folder that PostgreSQL's own user gets through, which pytest's are not; what runs in it is stopped."""
    made = Path(tempfile.mkdtemp(prefix="lora-select-stack-"))
    made.chmod(0o755)
    yield made
    for home in made.iterdir():
        if (home / "stack.json").exists():
            stack(home, "stop")
    shutil.rmtree(made)


def stack(home: Path, *arguments: object, environment: Mapping[str, str] | None = None):
    """`infra/stack.py --home HOME ...`, finished."""
    command = [sys.executable, str(ROOT / "infra" / "stack.py"), "--home", str(home), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=500)
