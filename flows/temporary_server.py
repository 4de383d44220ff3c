"""Prefect's temporary server ends with the flow that started it, also where that flow is killed."""

import atexit
import subprocess
import sys

GUARD = """
import os, signal, sys, time
if not sys.stdin.read():  # the flow is gone and had no time to say that the server was ended
    try:
        os.kill(int(sys.argv[1]), signal.SIGTERM)
        time.sleep(5)
        os.kill(int(sys.argv[1]), signal.SIGKILL)
    except ProcessLookupError:
        pass
"""


def start_guarded() -> None:
    """Start the server that Prefect would start at its first request, and a process that ends it once this one is gone.

    The guard reads a pipe that this process alone holds open. A flow that is killed while the server starts still leaves it.

    Raises:
        RuntimeError: Prefect's, where the server does not answer in time.
    """
    from prefect.server.api.server import SubprocessASGIServer

    server = SubprocessASGIServer()  # the one that Prefect's clients ask for
    guards: list[subprocess.Popen[bytes]] = []
    atexit.register(_release, guards)  # before the server's own, so that it runs after it
    server.start()
    if server.server_process is not None:
        words = [sys.executable, "-ES", "-c", GUARD, str(server.server_process.pid)]
        guards.append(subprocess.Popen(words, stdin=subprocess.PIPE, start_new_session=True))


def _release(guards: list[subprocess.Popen[bytes]]) -> None:
    for guard in guards:
        guard.communicate(b"ended")
