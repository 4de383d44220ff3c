"""The stack as processes, for real: behind passwords, restarted, killed, backed up, restored into an empty one."""

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request

import psutil
import pytest
from services import backup, postgres, servers
from services.home import DATABASES, Home, StackError
from stack_harness import ROOT, stack

CLIENT = """
import sys
from pathlib import Path
import mlflow_samples as samples
from lora_select.tracking import registry
from lora_select.tracking.store import prepare
from lora_select.tracking.tracker import Tracker
import os
folder = Path(sys.argv[1])
folder.mkdir(exist_ok=True)
store = prepare(os.environ["MLFLOW_TRACKING_URI"], "stack")
if sys.argv[2] == "write":
    tracker = Tracker.start(store, folder, "key", name="tweets")
    adapter = samples.adapter(folder)
    for label, record in (("dataset", samples.dataset(folder)), ("adapter", adapter)):
        tracker.begin(label)
        tracker.log(label, record, folder)
        tracker.end(label)
    assert tracker.finish() == 0
    version = registry.register(store, "tweets", tracker.run_id("adapter"), adapter, folder)
    registry.set_alias(store, "tweets", version.version, "champion")
champion = registry.by_alias(store, "tweets")
place = registry.download(store, champion, folder / sys.argv[2])
print(champion.version, (place / "adapter_model.safetensors").read_text(), len(store.client.search_logged_models([store.experiment_id])))
"""


def client(home, folder, what):
    environment = {**os.environ, **servers.client_environment(Home(home))}
    environment["PYTHONPATH"] = f"{ROOT}:{ROOT / 'tests'}"
    command = [sys.executable, "-c", CLIENT, str(folder), what]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.split(None, 1)


@pytest.mark.server
@pytest.mark.timeout(1200)
def test_a_run_survives_restarts_and_is_restored_into_an_empty_stack(place, tmp_path):
    one, two, saved = place / "one", place / "two", place / "saved"
    made = stack(one, "start")
    assert made.returncode == 0, made.stderr
    assert stack(one, "status").returncode == 0

    # Nothing is open without a password, and no password is in a command line or in what a client sees.
    home = Home(one)
    for address in (
        f"{home.url('mlflow')}/api/2.0/mlflow/registered-models/search",
        f"{home.url('prefect')}/api/flows/count",
    ):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(address, timeout=20)
        assert refused.value.code in (401, 403)
    secrets = {
        file.read_text().strip() for file in (one / "secrets").iterdir() if file.name.endswith(("_password", "_key"))
    }
    assert len(secrets) >= 6
    lines = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
    logs = [file.read_text(errors="replace") for file in (one / "logs").iterdir()]
    assert not [secret for secret in secrets for text in (*lines, *logs) if secret in text]
    assert not [file for file in (one / "secrets").iterdir() if file.stat().st_mode & 0o077]

    wrong = {**os.environ, **servers.client_environment(home), "MLFLOW_TRACKING_PASSWORD": "wrong"}
    told = subprocess.run(
        [sys.executable, "-c", "import os; from lora_select.tracking.store import prepare; prepare(os.environ['MLFLOW_TRACKING_URI'])"],
        env=wrong | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip
    assert told.returncode == 1
    assert "WorldError" in told.stderr.splitlines()[-1]
    assert "MLFLOW_TRACKING_USERNAME" in told.stderr.splitlines()[-1]
    written = client(one, tmp_path / "client", "write")
    assert written[0] == "1"

    # Each service killed or restarted: the champion is still there.
    victim = home.process("mlflow")
    assert victim is not None
    victim.kill()
    victim.wait(20)
    faulty = stack(one, "status")
    assert faulty.returncode == 1
    assert "does not run" in faulty.stdout
    assert stack(one, "restart", "mlflow").returncode == 0
    assert client(one, tmp_path / "client", "again") == written
    assert stack(one, "restart", "postgres").returncode == 0
    assert client(one, tmp_path / "client", "after-postgres") == written

    (tmp_path / "ledger.jsonl").write_text('{"seq": 0}\n')
    kept = stack(one, "backup", saved, "--also", tmp_path / "ledger.jsonl")
    assert kept.returncode == 0, kept.stderr
    assert stack(one, "backup", saved).returncode == 2
    assert stack(one, "stop").returncode == 0

    restored = stack(two, "restore", saved, "--into", tmp_path / "back")
    assert restored.returncode == 0, restored.stderr
    assert (tmp_path / "back" / "ledger.jsonl").read_text() == '{"seq": 0}\n'
    assert stack(two, "--without", "worker", "start").returncode == 0
    assert client(two, tmp_path / "client", "restored") == written
    assert stack(two, "restore", saved).returncode == 2
    assert stack(two, "stop").returncode == 0
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(place) in " ".join(p.info["cmdline"] or [])]


def test_a_backup_that_was_changed_is_named_before_anything_is_written(tmp_path):
    for name in (*(f"{database}.dump" for database in DATABASES), "mlartifacts.tar.gz"):
        (tmp_path / name).write_bytes(b"x" * 9)
    files = {file.name: backup._sha256(file) for file in tmp_path.iterdir()}
    (tmp_path / "manifest.json").write_text(json.dumps({"files": files, "versions": {}}))
    assert backup.check(tmp_path)["files"] == files
    (tmp_path / "prefect.dump").write_bytes(b"y" * 9)
    with pytest.raises(StackError, match=r"prefect\.dump is missing or not what was backed up"):
        backup.check(tmp_path)
    (tmp_path / "prefect.dump").unlink()
    with pytest.raises(StackError, match=r"prefect\.dump"):
        backup.check(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(StackError, match="no whole backup"):
        backup.check(tmp_path)


def test_an_archive_writes_nothing_outside(tmp_path):
    import io
    import tarfile

    with tarfile.open(tmp_path / "evil.tar.gz", "w:gz") as tar:
        entry = tarfile.TarInfo("../outside.txt")
        entry.size = 1
        tar.addfile(entry, io.BytesIO(b"x"))
    (tmp_path / "in").mkdir()
    with pytest.raises(tarfile.OutsideDestinationError):
        backup._unpack(tmp_path / "evil.tar.gz", tmp_path / "in")
    assert not (tmp_path / "outside.txt").exists()


def test_secrets_are_made_once_for_this_user_alone_or_taken_from_a_file(tmp_path, monkeypatch):
    home = Home(tmp_path / "home")
    first = home.secret("mlflow_password")
    assert Home(tmp_path / "home").secret("mlflow_password") == first
    assert len(first) >= 40
    assert (home.root / "secrets" / "mlflow_password").stat().st_mode & 0o777 == 0o600
    assert (home.root / "secrets").stat().st_mode & 0o777 == 0o700
    (tmp_path / "given").write_text("given by a vault\n")
    monkeypatch.setenv("LORA_SELECT_STACK_PREFECT_PASSWORD", str(tmp_path / "given"))
    assert home.secret("prefect_password") == "given by a vault"
    assert home.secret("mlflow_password") == first
    for name in ("mlflow", "prefect", "worker"):
        command, environment = servers.COMMANDS[name](home)
        values = [file.read_text().strip() for file in (home.root / "secrets").iterdir()]
        assert not [value for value in values if value in " ".join(command)]
        assert environment["DO_NOT_TRACK"] == "true"


def test_a_process_that_has_another_ones_pid_is_not_the_service(tmp_path):
    home = Home(tmp_path / "home")
    own = psutil.Process()
    home.note("processes", "mlflow", {"pid": own.pid, "started": own.create_time()})
    assert home.process("mlflow") == own
    home.note("processes", "mlflow", {"pid": own.pid, "started": own.create_time() - 60})
    assert home.process("mlflow") is None
    assert servers.health(home, "mlflow") == "does not run"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs PostgreSQL as somebody else")
def test_a_home_that_the_database_user_cannot_reach_is_named_needs_root(tmp_path):
    tmp_path.chmod(0o700)
    with pytest.raises(StackError, match="lets nobody else through"):
        postgres.start(Home(tmp_path / "home"))
