"""MLflow, Prefect and the worker as processes on loopback, each behind a password, each with a health check."""

import base64
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import psutil

from services import postgres
from services.home import ADMIN, Home, StackError

POOL = "lora-select"
WORKER = Path(__file__).parents[1] / "worker.py"
QUIET = {
    "DO_NOT_TRACK": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_ENABLE_AI_GATEWAY": "false",
    "MLFLOW_MODEL_CATALOG_URI": "",
}
STARTUP_S = 180.0


def mlflow(home: Home) -> tuple[list[str], dict[str, str]]:
    """Command and environment of the MLflow server: PostgreSQL, proxied artifacts, basic auth. No secret in the command."""
    port = home.port("postgres")
    config = (
        "[mlflow]\ndefault_permission = READ\n"
        f"database_uri = postgresql+psycopg2://mlflow_auth@127.0.0.1:{port}/mlflow_auth\n"
        f"admin_username = {ADMIN}\nauthorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    secrets = {
        "MLFLOW_AUTH_CONFIG_PATH": str(home.write_secret("basic_auth.ini", config)),
        "MLFLOW_AUTH_ADMIN_PASSWORD": home.secret("mlflow_admin_password"),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": home.secret("mlflow_session_key"),
        "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": _fernet(home),
    }
    command = [sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth"]
    command += ["--backend-store-uri", f"postgresql+psycopg2://mlflow@127.0.0.1:{port}/mlflow"]
    command += ["--artifacts-destination", str(home.root / "mlartifacts"), "--workers", "2"]
    command += ["--host", "127.0.0.1", "--port", str(home.port("mlflow"))]
    return command, {**postgres.environment(home), **QUIET, **secrets}


def prefect(home: Home) -> tuple[list[str], dict[str, str]]:
    """Command and environment of the Prefect server."""
    port = home.port("postgres")
    settings = {
        "PREFECT_API_DATABASE_CONNECTION_URL": f"postgresql+asyncpg://prefect@127.0.0.1:{port}/prefect",
        "PREFECT_SERVER_API_AUTH_STRING": _prefect_login(home),
        "PREFECT_HOME": str(home.root / "prefect"),
    }
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1"]
    return [*command, "--port", str(home.port("prefect"))], {**postgres.environment(home), **QUIET, **settings}


def worker(home: Home) -> tuple[list[str], dict[str, str]]:
    """Command and environment of the worker: it knows the addresses and passwords of both servers."""
    command = [sys.executable, str(WORKER), "--pool", POOL, "--type", "process"]
    command += ["--limit", "1"]  # what waits is left in its order, and is not tried again and again
    own = {"PREFECT_HOME": str(home.root / "prefect"), "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"}
    return command, {**os.environ, **QUIET, **client_environment(home), **own}


COMMANDS: dict[str, Callable[[Home], tuple[list[str], dict[str, str]]]] = {
    "mlflow": mlflow,
    "prefect": prefect,
    "worker": worker,
}


def client_environment(home: Home) -> dict[str, str]:
    """What a client needs: addresses and passwords."""
    return {
        "MLFLOW_TRACKING_URI": home.url("mlflow"),
        "MLFLOW_TRACKING_USERNAME": ADMIN,
        "MLFLOW_TRACKING_PASSWORD": home.secret("mlflow_admin_password"),
        "PREFECT_API_URL": f"{home.url('prefect')}/api",
        "PREFECT_API_AUTH_STRING": _prefect_login(home),
    }


def write_client_environment(home: Home) -> Path:
    """`secrets/client.env`, to be read with `set -a; . FILE`."""
    lines = [f"{name}='{value}'" for name, value in client_environment(home).items()]
    return home.write_secret("client.env", "\n".join(lines))


def start(home: Home, name: str) -> None:
    """Start a service and wait until it is healthy; nothing happens when it runs.

    Raises:
        StackError: it ended or did not answer in time; the sentence names the log.
    """
    if home.process(name) is None:
        command, environment = COMMANDS[name](home)
        log = home.root / "logs" / f"{name}.log"
        with log.open("ab") as out:
            started = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )
        home.note("processes", name, {"pid": started.pid, "started": psutil.Process(started.pid).create_time()})
    until = time.monotonic() + STARTUP_S
    while health(home, name):
        if home.process(name) is None:
            raise StackError(f"{name} ended while starting; see {home.root / 'logs' / name}.log")
        if time.monotonic() > until:
            raise StackError(f"{name} does not answer after {STARTUP_S:.0f} s; see {home.root / 'logs' / name}.log")
        time.sleep(0.3)


def stop(home: Home, name: str, patience: float = 20.0) -> None:
    """SIGTERM to the whole tree, SIGKILL to what is left after `patience` seconds."""
    process = home.process(name)
    if process is not None:
        tree = [process, *process.children(recursive=True)]
        process.terminate()
        _, left = psutil.wait_procs(tree, timeout=patience)
        for each in left:
            each.kill()
        psutil.wait_procs(left, timeout=5)
    home.note("processes", name, None)


def health(home: Home, name: str) -> str:
    """Why a service is not healthy; empty when it is: it runs, answers with its password, and refuses without."""
    if name == "postgres":
        return "" if postgres.running(home) else "takes no connections"
    if home.process(name) is None:
        return "does not run"
    if name == "worker":
        return _worker_health(home)
    path, login = {
        "mlflow": (
            "/api/2.0/mlflow/experiments/search?max_results=1",
            f"{ADMIN}:{home.secret('mlflow_admin_password')}",
        ),
        "prefect": ("/api/work_pools/filter", _prefect_login(home)),
    }[name]
    body = b"{}" if name == "prefect" else None
    address = home.url(name) + path
    if (open_to_all := _ask(address, None, body)[0]) not in (401, 403):
        return f"answers {open_to_all} without a password" if open_to_all else "does not answer"
    answer = _ask(address, login, body)[0]
    return "" if answer == 200 else f"answers {answer or 'nothing'} with its password"


def _worker_health(home: Home) -> str:
    """A worker listens nowhere: the Prefect server says whether one was heard of lately."""
    address = f"{home.url('prefect')}/api/work_pools/{POOL}/workers/filter"
    status, text = _ask(address, _prefect_login(home), b"{}")
    if status != 200:
        return "the Prefect server does not know it"
    return "" if any(each["status"] == "ONLINE" for each in json.loads(text)) else "was not heard of lately"


def _ask(address: str, login: str | None, body: bytes | None) -> tuple[int, bytes]:
    """Status (0: no answer) and text."""
    headers = {"Content-Type": "application/json"}
    if login:
        headers["Authorization"] = "Basic " + base64.b64encode(login.encode()).decode()
    try:
        with urllib.request.urlopen(urllib.request.Request(address, body, headers), timeout=10) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, b""
    except OSError:
        return 0, b""


def _prefect_login(home: Home) -> str:
    return f"{ADMIN}:{home.secret('prefect_password')}"


def _fernet(home: Home) -> str:
    """The key that MLflow encrypts webhook secrets with; without one it forgets them at every restart."""
    place = home.root / "secrets" / "webhook_key"
    if not place.exists():
        home.write_secret("webhook_key", base64.urlsafe_b64encode(os.urandom(32)).decode())
    return home.secret("webhook_key")
