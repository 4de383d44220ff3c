"""A backup is a folder: one dump a database, artifacts and more folders as archives, and a manifest of their digests."""

import hashlib
import importlib.metadata
import json
import os
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path

from services import postgres
from services.home import ADMIN, DATABASES, Home, StackError

MANIFEST = "manifest.json"


def save(home: Home, into: Path, also: Sequence[Path] = ()) -> Path:
    """Back up the running stack.

    Args:
        home: of the stack; PostgreSQL must run.
        into: made; must not exist or be empty.
        also: more files or folders, such as `runs/ledger.jsonl`; kept by name.

    Databases are dumped before artifacts are read, so that every artifact that a dump names is there.

    Raises:
        StackError: the place is not empty, two of `also` have one name, or a dump failed.
    """
    into.mkdir(parents=True, exist_ok=True)
    if any(into.iterdir()):
        raise StackError(f"{into} is not empty; name a new folder")
    if len({path.resolve().name for path in also}) != len(also):
        raise StackError("two of the things to back up have the same name")
    into.chmod(0o700)
    for name in DATABASES:
        postgres.client(home, "pg_dump", "-Fc", "-f", str(into / f"{name}.dump"), database=name)
    _pack(home.root / "mlartifacts", into / "mlartifacts.tar.gz")
    for path in also:
        if not path.exists():
            raise StackError(f"{path} is not there to be backed up")
        _pack(path, into / f"also-{path.resolve().name}.tar.gz")
    files = {file.name: _sha256(file) for file in sorted(into.iterdir())}
    versions = {name: importlib.metadata.version(name) for name in ("mlflow", "prefect")}
    made = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    text = json.dumps({"made": made, "versions": versions, "files": files}, indent=1, sort_keys=True)
    (into / f"{MANIFEST}.new").write_text(text + "\n", encoding="utf-8")
    os.replace(into / f"{MANIFEST}.new", into / MANIFEST)
    return into


def load(home: Home, source: Path, into: Path | None = None) -> dict[str, str]:
    """Restore a backup into an empty stack of which PostgreSQL alone runs.

    Args:
        home: of the new stack.
        source: a folder that `save` made; every digest is checked before anything is written.
        into: where what was saved with `also` goes; None leaves it out.

    Returns:
        The versions of the servers that made it.

    Raises:
        StackError: the backup is not whole or was changed, or the stack is not empty.
    """
    manifest = check(source)
    for name in DATABASES:
        if postgres.tables(home, name):
            raise StackError(f"database {name} is not empty; restore into a stack of its own: another --home")
    if any((home.root / "mlartifacts").iterdir()):
        raise StackError(f"{home.root / 'mlartifacts'} is not empty; restore into a stack of its own: another --home")
    for name in DATABASES:
        dump = str(source / f"{name}.dump")
        arguments = ["--no-owner", f"--role={name}", "--exit-on-error", "--single-transaction"]
        if name == "prefect":  # the extension belongs to the superuser and is there
            arguments.append(f"--use-list={_without_extensions(home, dump)}")
        postgres.client(home, "pg_restore", *arguments, dump, database=name)
    _unpack(source / "mlartifacts.tar.gz", home.root)
    if into is not None:
        into.mkdir(parents=True, exist_ok=True)
        for archive in sorted(source.glob("also-*.tar.gz")):
            _unpack(archive, into)
    _reset_admin(home)
    return manifest["versions"]


def check(source: Path) -> dict:
    """The manifest, after every file was found with its digest.

    Raises:
        StackError: names the first file that is missing or was changed.
    """
    try:
        manifest = json.loads((source / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StackError(f"{source} is no whole backup: {MANIFEST} cannot be read ({error})") from error
    for name, digest in manifest["files"].items():
        file = source / name
        if not file.is_file() or _sha256(file) != digest:
            raise StackError(
                f"{file} is missing or not what was backed up (SHA-256 {digest[:12]}…); use another backup"
            )
    return manifest


def _without_extensions(home: Home, dump: str) -> str:
    listed = postgres.client(home, "pg_restore", "--list", dump)
    kept = [line for line in listed.splitlines() if " EXTENSION " not in line]
    place = home.root / "logs" / "restore.list"
    place.write_text("\n".join(kept) + "\n", encoding="utf-8")
    return str(place)


def _reset_admin(home: Home) -> None:
    """The restored users keep their passwords; the administrator gets this stack's."""
    os.environ["PGPASSFILE"] = postgres.environment(home)["PGPASSFILE"]
    from mlflow.server.auth.sqlalchemy_store import SqlAlchemyStore

    store = SqlAlchemyStore()
    store.init_db(f"postgresql+psycopg2://mlflow_auth@127.0.0.1:{home.port('postgres')}/mlflow_auth")
    if store.has_user(ADMIN):
        store.update_user(ADMIN, password=home.secret("mlflow_admin_password"))
    store.engine.dispose()


def _pack(path: Path, archive: Path) -> None:
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(path, arcname=path.resolve().name)


def _unpack(archive: Path, into: Path) -> None:
    """Nothing outside of `into` is written: absolute names, `..`, links that lead out and devices are refused."""
    with tarfile.open(archive) as tar:
        tar.extractall(into, filter="data")


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
