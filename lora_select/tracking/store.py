"""The MLflow store: checked, migrated once, reachable, before the first stage starts.

Everything goes through `MlflowClient` with explicit run ids. The fluent API keeps a run per thread and process: it
makes stray runs, and a child process that joins a run ends it.
"""

import contextlib
import fcntl
import logging
import os
import shlex
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import unquote, urlsplit

from lora_select.address import DEFAULT_URI, HIDDEN, expanded, masked, scrub, with_driver, without_login
from lora_select.errors import InputError, WorldError, require

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

EXPERIMENT = "lora-select"
DEFAULT_HOST = "http://127.0.0.1:5000"
LOGIN = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_MODEL_CATALOG_URI": "",
    "MLFLOW_TRUNCATE_LONG_VALUES": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""Read by mlflow at import. Its own retries would hold a stage for four minutes a call when a server is down."""
SERVER_ENVIRONMENT = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_ENABLE_AI_GATEWAY": "false",
    "MLFLOW_MODEL_CATALOG_URI": "",
}
"""Without these a server starts eight helper processes (0.7 GB) and asks the network for a price list."""
REMEDY = "start it with `mlflow server`, or set `tracking.uri` to sqlite:///mlflow.db"


@dataclass(frozen=True)
class Store:
    """A store that answers.

    `uri` is for people and files: a password in it is hidden, `${NAME}` is not filled in. `client` knows the real address; it is
    shared by one process, not pickled and not sent to children.
    """

    uri: str
    experiment: str
    experiment_id: str
    client: "MlflowClient"


def prepare(uri: str = DEFAULT_URI, experiment: str = EXPERIMENT) -> Store:
    """Check `uri`, migrate a fresh SQLite file once, find or create the experiment.

    Several processes may call this at once on a database that does not exist yet: one makes it, the others wait.

    Args:
        uri: `sqlite:///<path>`, `http(s)://host:port`, or a database that MLflow knows, such as `postgresql://`; `${NAME}` is
            filled in from the environment, and a database's driver is the one that is installed.
        experiment: its name; made when it is missing. Artifacts of a SQLite store go to `mlartifacts/` beside the file.

    Raises:
        InputError: a file store or an unknown kind of URI.
        WorldError: the server does not answer, or the database cannot be opened.
    """
    require("mlflow", "track", "`tracking.uri`")
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    check(uri)
    reach(uri)
    if uri.startswith("sqlite:"):
        uri = f"sqlite:///{database(expanded(uri))}"
        _migrate(database(uri))
    return Store(masked(uri), experiment, *_connect(with_driver(expanded(uri)), experiment))


def reopen(uri: str, experiment_id: str) -> Store:
    """The store that a finished run noted in `tracking.json`.

    Raises:
        InputError: the address is no longer whole (its password is hidden).
        WorldError: it does not answer, or the experiment is gone.
    """
    if uri.startswith("sqlite:") and not database(expanded(uri)).exists():
        raise WorldError(f"the MLflow database {database(uri)} is gone; name the store in MLFLOW_TRACKING_URI")
    require("mlflow", "track", "`tracking.uri`")
    check(uri)
    reach(uri)
    real = with_driver(expanded(uri))
    client = _client(real)
    try:
        found = client.get_experiment(experiment_id)
    except Exception as error:
        raise WorldError(
            f"MLflow at {masked(uri)} has no experiment {experiment_id}: {scrub(str(error))[:200]}"
        ) from error
    return Store(masked(uri), found.name, found.experiment_id, client)


def check(uri: str) -> None:
    """Refuse what cannot hold a run, before anything is imported.

    Raises:
        InputError: the sentence names the URI and what to write instead.
    """
    uri = expanded(uri)
    if f":{HIDDEN}@" in uri:
        raise InputError(
            f"the password of `tracking.uri` {uri} is hidden; give the whole address in MLFLOW_TRACKING_URI"
        )
    scheme = urlsplit(uri).scheme.split("+")[0]
    if scheme in ("", "file"):
        raise InputError(
            f"`tracking.uri` {masked(uri)!r} is a folder of files, which MLflow 3 no longer supports (no registry aliases, no "
            f"safe parallel writers); write sqlite:///mlflow.db instead"
        )
    if scheme not in ("sqlite", "http", "https", "postgresql", "mysql", "mssql"):
        raise InputError(
            f"`tracking.uri` {masked(uri)!r} has the unknown scheme {scheme!r}; use sqlite:///mlflow.db, http://host:5000 or "
            "postgresql://user@host/database"
        )
    if scheme == "sqlite" and (not uri.startswith("sqlite:///") or uri.endswith((":memory:", "/"))):
        raise InputError(
            f"`tracking.uri` {masked(uri)!r} names no file; write sqlite:///mlflow.db (three slashes, then the path)"
        )


def reach(uri: str) -> None:
    """See in seconds whether the server behind a checked URI answers; a file needs none.

    Raises:
        WorldError: it does not.
    """
    uri = expanded(uri)
    if uri.startswith("http"):
        _ping(uri)
    elif not uri.startswith("sqlite:"):
        _knock(uri)


def database(uri: str) -> Path:
    """The absolute path of the file that a `sqlite:///` URI names (relative to the working directory).

    >>> database("sqlite:////data/mlflow.db").as_posix()
    '/data/mlflow.db'
    """
    return Path(unquote(uri.removeprefix("sqlite:///").split("?")[0])).absolute()


def server_command(uri: str, *, port: int = 5000) -> str:
    """The command that opens a store in a browser, for a person to type.

    >>> server_command("sqlite:////data/mlflow.db")
    'mlflow server --backend-store-uri sqlite:////data/mlflow.db --artifacts-destination /data/mlartifacts --port 5000'
    """
    if uri.startswith("http"):
        return f"open {uri} in a browser"
    return shlex.join(["mlflow", *_server_arguments(uri, port)])


def serve(uri: str, port: int = 5000) -> NoReturn:
    """Become the server of a store's pages on this machine: this process is replaced, so Ctrl-C ends all of it.

    Raises:
        InputError: the URI is a server already, or the port is taken.
    """
    check(uri)
    if uri.startswith("http"):
        raise InputError(f"`tracking.uri` {uri} is a server already; open it in a browser")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise InputError(f"port {port} cannot be used ({error.strerror}); choose another with --port") from error
    prepare(uri)
    uri = with_driver(expanded(uri))
    command = [sys.executable, "-m", "mlflow", *_server_arguments(uri, port), "--host", "127.0.0.1", "--workers", "1"]
    os.execve(sys.executable, command, {**os.environ, **SERVER_ENVIRONMENT})


def _server_arguments(uri: str, port: int) -> list[str]:
    artifacts = _artifacts(database(uri)) if uri.startswith("sqlite:") else Path("mlartifacts")
    stores = ["--backend-store-uri", uri, "--artifacts-destination", str(artifacts)]
    return ["server", *stores, "--port", str(port)]


def web_address(uri: str) -> str:
    """Where a person's browser finds the store: the server itself, or where `server_command` will put it."""
    return without_login(uri).rstrip("/") if uri.startswith("http") else DEFAULT_HOST


def is_outage(error: BaseException) -> bool:
    """Whether a failed call is worth repeating later: True unless MLflow itself refused what was sent.

    MLflow wraps a broken connection, a locked database and a 5xx in the same exception as a refusal; only the code
    tells them apart. Artifacts go through plain HTTP and have a status instead.
    """
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return status >= 500 or status in (401, 403, 408, 429)
    return getattr(error, "error_code", None) not in {
        "INVALID_PARAMETER_VALUE",
        "BAD_REQUEST",
        "INVALID_STATE",
        "RESOURCE_ALREADY_EXISTS",
        "RESOURCE_DOES_NOT_EXIST",
    }


def _quiet() -> None:
    """After the import, which sets the level itself."""
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _artifacts(path: Path) -> Path:
    return path.parent / "mlartifacts"


def _connect(uri: str, experiment: str) -> tuple[str, "MlflowClient"]:
    """The experiment's id and the client, or one sentence."""
    try:
        client = _client(uri)
        found = _experiment_id(client, uri, experiment)
        if not uri.startswith("http"):
            # The registry's engine is made at its first call, which MLflow repeats for minutes where the database is away: now, not then.
            client.search_registered_models(max_results=1)
        return found, client
    except WorldError:
        raise
    except Exception as error:  # MlflowException, or SQLAlchemy's and sqlite3's own when the file is something else
        first_line = scrub((str(error).splitlines() or [type(error).__name__])[0])[:300]
        raise WorldError(
            f"MLflow at {masked(uri)} cannot be used: {first_line}; {LOGIN if 'authenticat' in first_line else _remedy(uri)}"
        ) from error


def _client(uri: str) -> "MlflowClient":
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow.tracking import MlflowClient

    _quiet()
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _remedy(uri: str) -> str:
    if uri.startswith("sqlite:"):
        return f"`mlflow db upgrade {uri}` mends an old file (copy it first), another `tracking.uri` starts a new one"
    return REMEDY


def _experiment_id(client: "MlflowClient", uri: str, name: str) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        location = str(_artifacts(database(uri)) / name) if uri.startswith("sqlite:") else None
        kind = {"mlflow.experimentKind": "custom_model_development"}
        try:
            return client.create_experiment(name, artifact_location=location, tags=kind)
        except MlflowException:
            found = client.get_experiment_by_name(name)  # another process was first
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        raise WorldError(f"experiment {name!r} at {masked(uri)} was deleted; restore it or set `tracking.experiment`")
    return found.experiment_id


def _ping(uri: str, *, attempts: int = 2, timeout: float = 3.0) -> None:
    """Ask `/version`, which is cheap. A server behind a password asks for it: it is there, and the first call says whether the password is right.

    Raises:
        WorldError: nobody answers, or what answers is not MLflow.
    """
    reason = ""
    for attempt in range(attempts):
        if attempt:
            time.sleep(0.5)
        try:
            with urllib.request.urlopen(f"{without_login(uri).rstrip('/')}/version", timeout=timeout) as answer:
                version = answer.read(64).decode(errors="replace").strip()
        except (urllib.error.URLError, TimeoutError, OSError, ValueError) as error:
            if isinstance(error, urllib.error.HTTPError) and error.code == HTTPStatus.UNAUTHORIZED:
                return
            reason = str(getattr(error, "reason", error))
            continue
        if not version[:1].isdigit():
            raise WorldError(f"something answers at {masked(uri)} but it is not an MLflow server; {REMEDY}")
        return
    raise WorldError(f"MLflow does not answer at {masked(uri)} ({reason}); {REMEDY}")


def _knock(uri: str, *, timeout: float = 3.0) -> None:
    """Open the database server's port once: MLflow itself would try for a quarter of an hour.

    Raises:
        WorldError: nothing listens there.
    """
    parts = urlsplit(uri)
    ports = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
    try:
        port = parts.port or ports[parts.scheme.split("+")[0]]
        socket.create_connection((parts.hostname or "localhost", port), timeout).close()
    except (OSError, ValueError) as error:
        raise WorldError(
            f"no database answers at {masked(uri)} ({error}); start it or change `tracking.uri`"
        ) from error


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on `path` over processes; the kernel lets go when the holder dies."""
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _migrate(path: Path) -> None:
    """Make the database whole or not at all: built beside its place, then renamed.

    Two processes that migrate one fresh file break each other (duplicate column), and a kill in mid-migration leaves
    tables that no later migration can mend.

    Raises:
        WorldError: the folder cannot be written.
    """
    if path.exists() and path.stat().st_size:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.with_name(f"{path.name}.lock")):
            if not (path.exists() and path.stat().st_size):
                _build(path)
    except OSError as error:
        raise WorldError(f"cannot make the MLflow database {path}: {error.strerror}; set `tracking.uri`") from error


def _build(path: Path) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    _quiet()
    temporary = path.with_name(f"{path.name}.new")
    for left_over in path.parent.glob(f"{temporary.name}*"):
        left_over.unlink()
    store = SqlAlchemyStore(f"sqlite:///{temporary}", str(_artifacts(path)))
    store.engine.dispose()
    os.replace(temporary, path)
