"""A password that stands in an address is in no message, file or tag."""

import json
import stat

import mlflow_samples as samples
import pytest

from lora_select import address, records
from lora_select.errors import InputError, WorldError
from lora_select.tracking import registry
from lora_select.tracking import store as stores
from lora_select.tracking.store import Store
from lora_select.tracking.tracker import Tracker

PLANTED = "hunter22-x"


@pytest.mark.parametrize(
    "uri",
    [
        f"postgresql://ann:{PLANTED}@127.0.0.1:9/db",
        f"mysql://ann:{PLANTED}@127.0.0.1:9/db",
        f"http://ann:{PLANTED}@127.0.0.1:9",
        f"ftp://ann:{PLANTED}@host/x",
    ],
)
def test_no_error_about_an_address_shows_its_password(uri):
    with pytest.raises((InputError, WorldError)) as caught:
        stores.prepare(uri)
    assert PLANTED not in str(caught.value)
    assert "ann:***@" in str(caught.value)


def test_a_late_error_and_the_notes_hide_it_too(store, tmp_path, monkeypatch, capsys):
    real = f"postgresql://ann:{PLANTED}@host/db"
    held = Store(address.masked(real), store.experiment, store.experiment_id, store.client)
    tracker = Tracker.start(held, tmp_path, "key", name="tweets")
    notes = tmp_path / "tracking.json"
    assert stat.S_IMODE(notes.stat().st_mode) == 0o600
    assert json.loads(notes.read_text())["uri"] == "postgresql://ann:***@host/db"

    def broken(*args, **arguments):
        raise ConnectionError(f"(psycopg2.OperationalError) could not connect to {real}")

    for call in ("create_registered_model", "log_batch", "set_terminated"):
        monkeypatch.setattr(store.client, call, broken)
    folder = tmp_path / "stage"
    folder.mkdir()
    with pytest.raises(WorldError) as caught:
        registry.register(held, "tweets", "r", samples.adapter(folder), folder)
    assert PLANTED not in str(caught.value)
    tracker.begin("dataset")
    tracker.log("dataset", samples.dataset(folder), folder)
    tracker.finish()
    said = capsys.readouterr()
    assert "does not answer; the run goes on" in said.err  # at once, on the terminal
    for file in tmp_path.rglob("*"):
        if file.is_file() and file.suffix != ".db":
            assert PLANTED not in file.read_text(errors="replace"), file
    assert PLANTED not in said.out + said.err + repr(held)


def test_variables_are_filled_in_where_they_are_used(tmp_path, monkeypatch):
    monkeypatch.setenv("HERE", str(tmp_path))
    ready = stores.prepare("sqlite:///${HERE}/mlflow.db")
    assert (tmp_path / "mlflow.db").is_file()
    assert stores.reopen(ready.uri, ready.experiment_id).experiment == stores.EXPERIMENT
    monkeypatch.delenv("HERE")
    with pytest.raises(InputError, match="environment variable HERE, which is not set"):
        stores.prepare("sqlite:///${HERE}/mlflow.db")


def test_a_hidden_password_asks_for_the_whole_address():
    with pytest.raises(InputError, match="MLFLOW_TRACKING_URI"):
        stores.reopen("postgresql://ann:***@host/db", "1")


def test_the_driver_is_one_that_is_installed():
    import sqlalchemy

    uri = address.with_driver("postgresql://ann:x@host/db")
    assert sqlalchemy.create_engine(uri).dialect.name == "postgresql"
    assert address.with_driver("postgresql+asyncpg://host/db") == "postgresql+asyncpg://host/db"
    assert address.with_driver("sqlite:///x") == "sqlite:///x"


def test_no_driver_is_one_sentence(monkeypatch):
    monkeypatch.setattr(address.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install pymysql"):
        address.with_driver("mysql://ann:x@host/db")


def test_a_private_file_is_private_from_its_first_byte(tmp_path):
    path = tmp_path / "config.json"
    path.write_text("old, readable by all")
    records.write_private(path, "new")
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("new", 0o600)
