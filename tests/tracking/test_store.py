import os
import socket
import sqlite3
import subprocess
import sys

import mlflow_samples as samples
import pytest

from lora_select.errors import InputError, WorldError
from lora_select.tracking import store as stores


@pytest.mark.parametrize("uri", ["file:///data/mlruns", "./mlruns", "mlruns"])
def test_a_file_store_is_refused_with_the_way_out(uri):
    with pytest.raises(InputError, match=r"no longer supports.*sqlite:///mlflow\.db") as caught:
        stores.prepare(uri)
    assert uri in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "words"),
    [("ftp://x", "unknown scheme 'ftp'"), ("sqlite://x.db", "three slashes"), ("sqlite:///:memory:", "names no file")],
)
def test_other_bad_uris_are_refused(uri, words):
    with pytest.raises(InputError, match=words):
        stores.prepare(uri)


def test_a_server_that_is_not_there_is_one_sentence_with_a_remedy():
    port = samples.free_port()
    with pytest.raises(WorldError, match=rf"127\.0\.0\.1:{port}.*start it with `mlflow server`") as caught:
        stores.prepare(f"http://127.0.0.1:{port}")
    assert "\n" not in str(caught.value)


def test_a_database_server_that_is_not_there_is_told_at_once_without_the_password():
    with pytest.raises(WorldError, match="no database answers") as caught:
        stores.prepare(f"postgresql://me:secret@127.0.0.1:{samples.free_port()}/db")
    assert "secret" not in str(caught.value)


def test_something_else_on_the_port_is_told_apart():
    port = samples.free_port()
    program = f"import http.server as h; h.test(h.SimpleHTTPRequestHandler, port={port}, bind='127.0.0.1')"
    other = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
        with pytest.raises(WorldError, match=r"127\.0\.0\.1"):
            stores.prepare(f"http://127.0.0.1:{port}")
    finally:
        other.kill()
        other.wait()


@pytest.mark.slow
def test_four_processes_may_start_at_once_on_a_database_that_does_not_exist(tmp_path):
    program = (
        "from lora_select.tracking.store import prepare\n"
        f"store = prepare('sqlite:///{tmp_path}/new/mlflow.db', 'shared')\n"
        "print(store.experiment_id, store.client.create_run(store.experiment_id).info.status)"
    )
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    start = [sys.executable, "-c", program]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(start, env=environment, **pipes) for _ in range(4)]
    answers = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, answers
    assert len({out for out, _ in answers}) == 1, "all four must see the same experiment"
    with sqlite3.connect(tmp_path / "new" / "mlflow.db") as connection:
        assert connection.execute("select count(*) from runs").fetchone() == (4,)


def test_a_killed_migration_leaves_no_database_and_the_next_start_makes_one(tmp_path):
    (tmp_path / "mlflow.db.new").write_bytes(b"half a database")
    (tmp_path / "mlflow.db.new-journal").write_bytes(b"x")
    (tmp_path / "mlflow.db").touch()  # what sqlite3 leaves when it only opened the file
    ready = stores.prepare(f"sqlite:///{tmp_path}/mlflow.db")
    assert ready.client.get_experiment(ready.experiment_id).name == stores.EXPERIMENT
    assert not list(tmp_path.glob("*.new*"))


def test_an_old_schema_is_one_sentence_with_the_command(database):
    with sqlite3.connect(database) as connection:
        connection.execute("update alembic_version set version_num = '0a8213491aaa'")
    with pytest.raises(WorldError, match="mlflow db upgrade sqlite"):
        stores.prepare(f"sqlite:///{database}")


def test_no_database_at_all_is_one_sentence(tmp_path):
    (tmp_path / "mlflow.db").write_text("this is a letter, not a database" * 100)
    with pytest.raises(WorldError, match=r"mlflow\.db"):
        stores.prepare(f"sqlite:///{tmp_path}/mlflow.db")


def test_artifacts_lie_beside_the_database(store, database):
    location = store.client.get_experiment(store.experiment_id).artifact_location
    assert location.endswith(f"{database.parent}/mlartifacts/test")


def test_a_relative_uri_means_the_working_directory(database, monkeypatch):
    monkeypatch.chdir(database.parent)
    assert stores.prepare("sqlite:///mlflow.db").uri == f"sqlite:///{database}"


def test_a_taken_port_is_named(database):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=rf"port {port} .*--port"):
            stores.serve(f"sqlite:///{database}", port)


def test_importing_tracking_does_not_import_mlflow():
    modules = ("entries", "names", "outbox", "registry", "runs", "upload", "store", "tracker", "comparison")
    imports = ", ".join(f"lora_select.tracking.{name}" for name in modules)
    program = f"import sys; import {imports}; print('mlflow' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
