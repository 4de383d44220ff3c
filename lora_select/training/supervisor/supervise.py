"""The process between the flow and torchrun: `python -m lora_select.training.supervisor.supervise job.json PARENT_PID:CREATED NODE MODULE`.

It lives in a session of its own, starts torchrun, remembers every process below it (torchrun gives its ranks sessions of
their own, so killing a process group would miss them), and ends them all when it is told to, when its parent is gone, or
when no rank has moved for too long.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

import psutil

from lora_select.records import write_text
from lora_select.training import heartbeat, job, processes
from lora_select.training.failures import LAUNCHER_CODE, ORPHANED_CODE, STUCK_CODE

GRACE_SECONDS = 15.0
WORKER = "lora_select.training.worker.main"
"""What a rank runs."""


def main(job_file: Path, parent: processes.Identity, node: int = 0, module: str = WORKER) -> int:
    """Run torchrun to its end, `module` in every rank; returns its exit code, or the one that says why there is none."""
    told = job.read_job(job_file)
    folder = job_file.parent
    stopping: list[int] = []

    def on_signal(number: int, _frame: FrameType | None) -> None:
        stopping.append(number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, on_signal)
    me = processes.identity()
    log = folder / job.node_file(job.LOG, node)
    with log.open("ab") as stream:
        child = subprocess.Popen(
            command(job_file, told, node, module), stdout=stream, stderr=stream, env=_environment(me, told)
        )
    seen: set[processes.Identity] = set()
    started = time.time()
    code: int | None = None
    try:
        while code is None and (code := child.poll()) is None:
            if new := set(processes.descendants(me)) - seen:
                seen |= new
                _note(folder, node, me, seen)
            if stopping:
                code = 128 + stopping[0]
            elif not processes.alive(parent):
                code = ORPHANED_CODE
            elif time.time() - max(started, heartbeat.last(folder)) > told.patience_seconds:
                _dump_stacks(seen, log)
                code = STUCK_CODE
            else:
                time.sleep(0.5)
    finally:
        processes.stop(seen | set(processes.descendants(me)), grace=GRACE_SECONDS)
    return code if code >= 0 else LAUNCHER_CODE


def command(job_file: Path, told: job.TrainingJob, node: int, module: str = WORKER) -> list[str]:
    """How torchrun is started on a node."""
    plan = told.plan
    launcher = [sys.executable, "-m", "torch.distributed.run", "--max-restarts", "0"]
    ranks = ["--nproc-per-node", str(plan.num_processes // plan.nodes)]
    worker = ["-m", module, str(job_file)]
    if plan.nodes == 1 or told.rendezvous is None:
        return [*launcher, "--standalone", *ranks, *worker]
    conf = f"is_host={str(node == 0).lower()},join_timeout={int(told.patience_seconds)}"
    meeting = ["--nnodes", str(plan.nodes), "--rdzv-backend", "c10d", "--rdzv-endpoint", told.rendezvous]
    # The id is new for each attempt: what is left of the last one must not join.
    meeting += ["--rdzv-id", f"{job_file.parent.name}-{told.attempt}", "--rdzv-conf", conf]
    return [*launcher, *meeting, "--local-addr", _address_towards(told.rendezvous), *ranks, *worker]


def _address_towards(endpoint: str) -> str:
    """This machine's address on the way to `host:port`; a host's own name often resolves to another interface."""
    host, _, port = endpoint.rpartition(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, int(port)))  # sends nothing
        return probe.getsockname()[0]


def _interface(address: str) -> dict[str, str]:
    """Gloo and NCCL take the interface with the address that other nodes reach, unless they are told another."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address == address for one in addresses):
            wanted = {"GLOO_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": name}
            return {variable: value for variable, value in wanted.items() if variable not in os.environ}
    return {}


def _environment(me: processes.Identity, told: job.TrainingJob) -> dict[str, str]:
    meeting = _interface(_address_towards(told.rendezvous)) if told.plan.nodes > 1 and told.rendezvous else {}
    return (
        os.environ
        | meeting
        | {
            processes.SUPERVISOR: f"{me[0]}:{me[1]}",
            "OMP_NUM_THREADS": str(told.plan.threads_per_process),
            "PYTHONUNBUFFERED": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "TORCH_CPP_LOG_LEVEL": "ERROR",
        }
    )


def _dump_stacks(seen: set[processes.Identity], log: Path) -> None:
    """Ask the ranks for their stacks (they write them to the log) before they are ended."""
    with log.open("a", encoding="utf-8") as stream:
        stream.write(f"no rank moved for too long; {heartbeat.laggard(log.parent)}; stacks of the ranks follow\n")
    for who in seen:
        with contextlib.suppress(OSError):
            if processes.alive(who) and b"lora_select.training." in Path(f"/proc/{who[0]}/cmdline").read_bytes():
                os.kill(who[0], signal.SIGUSR1)
    time.sleep(2)


def _note(folder: Path, node: int, me: processes.Identity, seen: set[processes.Identity]) -> None:
    """Write the process tree down for the next start; on a full disk the ranks still die with this process."""
    content = json.dumps({"supervisor": list(me), "processes": sorted(seen)}) + "\n"
    with contextlib.suppress(OSError):
        write_text(folder / job.node_file(job.LAUNCH, node), content)


if __name__ == "__main__":
    pid, created = sys.argv[2].split(":")
    sys.exit(main(Path(sys.argv[1]), (int(pid), float(created)), int(sys.argv[3]), sys.argv[4]))
