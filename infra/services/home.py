"""The folder that a stack lives in: secrets made once, ports, logs, and which process is which."""

import json
import os
import secrets
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import psutil

DATABASES = ("mlflow", "mlflow_auth", "prefect")
"""One each: MLflow, its users and Prefect all use Alembic's default version table, and break each other's in one."""
ADMIN = "admin"
PORTS = {"postgres": 55432, "mlflow": 5000, "prefect": 4200}


class StackError(RuntimeError):
    """What went wrong, in a sentence with the way out."""


@final
@dataclass(frozen=True)
class Home:
    """Paths below one folder. Secrets are files of mode 0600 in a folder of mode 0700; no command line ever holds one."""

    root: Path

    def __post_init__(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        self.root.chmod(0o755)  # PostgreSQL may run as another user, who must get through
        for name in ("logs", "mlartifacts"):
            (self.root / name).mkdir(exist_ok=True)
            (self.root / name).chmod(0o700)
        (self.root / "secrets").mkdir(exist_ok=True)
        (self.root / "secrets").chmod(0o700)
        ignore = self.root / ".gitignore"
        if not ignore.exists():
            ignore.write_text("*\n")

    def secret(self, name: str) -> str:
        """The secret of that name, made when there is none. `LORA_SELECT_STACK_<NAME>` names a file to take it from."""
        place = self.root / "secrets" / name
        given = os.environ.get(f"LORA_SELECT_STACK_{name.upper()}")
        if given:
            return Path(given).read_text(encoding="utf-8").strip()
        if not place.exists():
            self.write_secret(name, secrets.token_urlsafe(32))
        return place.read_text(encoding="utf-8").strip()

    def write_secret(self, name: str, text: str) -> Path:
        """Write a file that only this user reads, whole or not at all."""
        place = self.root / "secrets" / name
        descriptor, temporary = tempfile.mkstemp(dir=place.parent)  # mode 0600
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text + "\n")
        os.replace(temporary, place)
        return place

    def port(self, service: str) -> int:
        """The port of a service: as noted, else its usual one, else a free one."""
        noted = self.notes().setdefault("ports", {})
        if service not in noted:
            self.note("ports", service, _free(PORTS[service]))
        return self.notes()["ports"][service]

    def notes(self) -> dict[str, Any]:
        """`stack.json`: ports and processes; it holds no secret."""
        try:
            return json.loads((self.root / "stack.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}

    def note(self, kind: str, name: str, value: Any) -> None:
        """Set one entry of `stack.json`; None takes it away."""
        notes = self.notes()
        entries = notes.setdefault(kind, {})
        entries.pop(name, None)
        if value is not None:
            entries[name] = value
        temporary = self.root / "stack.json.new"
        temporary.write_text(json.dumps(notes, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        os.replace(temporary, self.root / "stack.json")

    def process(self, name: str) -> psutil.Process | None:
        """The running process noted for a service; a pid that another program got since is not it."""
        noted = self.notes().get("processes", {}).get(name)
        if noted is None:
            return None
        try:
            process = psutil.Process(noted["pid"])
        except psutil.NoSuchProcess:
            return None
        alive = abs(process.create_time() - noted["started"]) < 2 and process.status() != psutil.STATUS_ZOMBIE
        return process if alive else None

    def url(self, service: str) -> str:
        """Where a service listens."""
        return f"http://127.0.0.1:{self.port(service)}"


def _free(wanted: int) -> int:
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return probe.getsockname()[1]
    raise StackError("no port is free on 127.0.0.1")
