"""The whole stack without containers: PostgreSQL, MLflow, Prefect and a worker as processes on loopback, each behind a password.

`python infra/stack.py start`, then `set -a; . .stack/secrets/client.env; set +a`. `run` does the same in the foreground and starts
again what dies. `compose.yaml` beside this file has the same services as containers.
"""

import argparse
import signal
import sys
import time
from pathlib import Path

from services import backup, postgres, servers
from services.home import Home, StackError

SERVICES = ("postgres", "mlflow", "prefect", "worker")
WATCH_S = 5.0


def start(home: Home, names: tuple[str, ...]) -> None:
    """Start services in their order, each when the one before is healthy."""
    for name in names:
        postgres.start(home) if name == "postgres" else servers.start(home, name)
        print(f"{name:9} {'healthy' if not servers.health(home, name) else servers.health(home, name)}", flush=True)
    print(f"clients: set -a; . {servers.write_client_environment(home)}; set +a")


def stop(home: Home, names: tuple[str, ...]) -> None:
    """Stop services, the last started first."""
    for name in reversed(names):
        postgres.stop(home) if name == "postgres" else servers.stop(home, name)


def status(home: Home, names: tuple[str, ...]) -> int:
    """One line a service; 1 where one is not healthy."""
    faults = {name: servers.health(home, name) for name in names}
    for name, fault in faults.items():
        process = home.process(name)
        where = home.url(name) if name in ("mlflow", "prefect") else ""
        print(f"{name:9} {fault or 'healthy':40} {f'pid {process.pid}' if process else '':12} {where}")
    return int(any(faults.values()))


def run(home: Home, names: tuple[str, ...]) -> int:
    """Start all, start again what dies or hangs, stop all at SIGINT or SIGTERM."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        start(home, names)
        while True:
            time.sleep(WATCH_S)
            for name in names:
                fault = servers.health(home, name)
                if fault:
                    print(f"{name} {fault}: starting it again", flush=True)
                    stop(home, (name,))
                    start(home, (name,))
    except KeyboardInterrupt:
        return 0
    finally:
        stop(home, names)


def main(arguments: list[str] | None = None) -> int:
    """Parse and act; 2 and one sentence for what went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, default=Path(".stack"), help="where data, logs and secrets are")
    parser.add_argument("--without", action="append", default=[], choices=SERVICES[1:], help="leave a service out")
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("start", "stop", "status", "run"):
        commands.add_parser(name)
    commands.add_parser("restart").add_argument("service", choices=SERVICES)
    saving = commands.add_parser("backup", help="dump databases and artifacts into a folder")
    saving.add_argument("folder", type=Path)
    saving.add_argument(
        "--also", type=Path, action="append", default=[], help="more to keep, such as runs/ledger.jsonl"
    )
    loading = commands.add_parser("restore", help="into an empty stack, whose servers are stopped")
    loading.add_argument("folder", type=Path)
    loading.add_argument("--into", type=Path, help="where what was saved with --also goes")
    given = parser.parse_args(arguments)
    try:
        return _act(given, Home(given.home.resolve()), tuple(name for name in SERVICES if name not in given.without))
    except (StackError, OSError) as error:
        print(f"stack: {error}", file=sys.stderr)
        return 2


def _act(given: argparse.Namespace, home: Home, names: tuple[str, ...]) -> int:
    if given.command == "start":
        start(home, names)
    elif given.command == "stop":
        stop(home, names)
    elif given.command == "status":
        return status(home, names)
    elif given.command == "run":
        return run(home, names)
    elif given.command == "restart":
        stop(home, (given.service,))
        start(home, (given.service,))
    elif given.command == "backup":
        print(f"backed up into {backup.save(home, given.folder, given.also)}")
    else:
        stop(home, SERVICES)
        postgres.start(home)
        versions = backup.load(home, given.folder, given.into)
        print(
            f"restored, made by {', '.join(f'{name} {version}' for name, version in versions.items())}; now start the stack"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
