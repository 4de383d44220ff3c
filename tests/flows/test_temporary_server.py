"""Prefect's temporary server after the flow that started it: really killed, and ended as it should."""

import contextlib
import signal
import subprocess
import sys
import time

import psutil
import pytest
import tiny_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
FLOW = """
import signal, sys, flows
from flows.temporary_server import start_guarded
from prefect import flow
from prefect.server.api.server import SubprocessASGIServer

@flow
def waits():
    print(SubprocessASGIServer().server_process.pid, flush=True)
    sys.stdin.read()

signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
start_guarded()
waits()
"""


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "stopped"])
def test_the_temporary_server_ends_with_its_flow(tmp_path, ending):
    words, pipe = [sys.executable, "-c", FLOW], subprocess.PIPE
    place = {"cwd": tiny_run.ROOT, "env": tiny_run.environment(tmp_path)}
    with psutil.Popen(words, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True, **place) as flow:
        server = psutil.Process(int(flow.stdout.readline()))
        below = flow.children(recursive=True)
        assert server in below
        flow.send_signal(ending)
        assert flow.wait(60) in (-signal.SIGKILL, 143)
    gone = [_gone(process) for process in below]
    for process in below:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    assert all(gone)


def _gone(process: psutil.Process) -> bool:
    """Within 30 seconds."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.2)
                continue
        return True
    return False
