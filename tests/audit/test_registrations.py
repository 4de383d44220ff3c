"""A dataset is entered once, an event that no registration backs starts nothing, and what was missed is found again."""

import json
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import ClassVar

import pytest

from lora_select.audit import run_entries
from lora_select.audit.books.ledger import in_folder
from lora_select.audit.registrations import admit, enter, holders, inside, pending, put_back, registered, take
from lora_select.cli.main import main
from lora_select.data.events import emit_registered
from lora_select.data.register import manifest as look_at
from lora_select.errors import InputError, WorldError


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data" / "ev: il.jsonl"
    path.parent.mkdir()
    path.write_text('{"prompt": "a", "completion": "b"}\n')
    return path


@pytest.fixture
def manifest(data):
    return look_at(data)


def note(root, manifest):
    return enter(root, manifest.path, manifest.digest, by="Ann")


def test_the_same_bytes_are_entered_once(tmp_path, manifest):
    root = tmp_path / "runs"
    first, new = note(root, manifest)
    again, newer = note(root, manifest)
    assert (new, newer, again) == (True, False, first)
    assert [entry.kind for entry in in_folder(root).entries()] == ["opened", "dataset"]


def test_fifty_registrations_of_five_datasets_at_once_are_five_entries(tmp_path):
    """Two at once would each find none before; one event each would be sent, and the second run would only find the first's work."""
    root = tmp_path / "runs"
    with ThreadPoolExecutor(10) as pool:
        made = list(pool.map(lambda n: enter(root, f"/data/{n % 5}", f"{n % 5}" * 64, by="Ann"), range(50)))
    assert sum(new for _, new in made) == 5
    assert len(registered(in_folder(root))) == 5
    assert len([entry for entry in in_folder(root).entries() if entry.kind == "dataset"]) == 5


def test_bytes_that_come_back_are_admitted_again(tmp_path, data, manifest):
    root, text = tmp_path / "runs", data.read_text()
    note(root, manifest)
    data.write_text('{"prompt": "a", "completion": "c"}\n')
    note(root, look_at(data))
    data.write_text(text)
    assert note(root, look_at(data))[1]
    assert registered(in_folder(root))[-1].digest == manifest.digest


def test_what_no_run_has_trained_on_is_pending(tmp_path, data, manifest):
    root = tmp_path / "runs"
    note(root, manifest)
    assert [(item.path, item.digest) for item in pending(root)] == [(str(data.resolve()), manifest.digest)]
    run = root / "r1"
    run.mkdir()
    (run / "report.json").write_text("{}")
    run_entries.closed(run, sources={"train": manifest.digest})
    assert pending(root) == []
    data.write_text('{"prompt": "a", "completion": "c"}\n')
    note(root, look_at(data))
    assert len(pending(root)) == 1


def three(root):
    for name in "abc":
        enter(root, f"/data/{name}", name * 64, by="Ann")


def end(root, digest):
    run = root / f"run-{digest[:4]}"
    run.mkdir()
    (run / "report.json").write_text("{}")
    run_entries.closed(run, sources={"train": digest})


def test_runs_take_registrations_in_the_ledgers_order_whatever_their_events_name(tmp_path):
    three(tmp_path)
    taken = [take(tmp_path, holder, "/data/c", "c" * 64) for holder in ("r1", "r2", "r3", "r4")]
    assert [one.path for one in taken] == ["/data/a", "/data/b", "/data/c", "/data/c"]
    assert take(tmp_path, "r2", "/data/c", "c" * 64) == taken[1], "who asks again gets the same"
    assert [entry.details["path"] for entry in in_folder(tmp_path).entries() if entry.kind == "dataset taken"] == [
        "/data/a", "/data/b", "/data/c",
    ]  # fmt: skip


def test_ten_runs_at_once_take_three_registrations_once_each(tmp_path):
    three(tmp_path)
    with ThreadPoolExecutor(10) as pool:
        taken = list(pool.map(lambda n: take(tmp_path, f"r{n}", "/data/a", "a" * 64), range(10)))
    assert sorted(one.path for one in taken) == [*["/data/a"] * 8, "/data/b", "/data/c"]
    assert len(holders(in_folder(tmp_path))) == 3


def test_what_was_trained_on_is_not_taken_and_what_was_put_back_is_taken_again(tmp_path):
    three(tmp_path)
    first = take(tmp_path, "r1", "/data/a", "a" * 64)
    end(tmp_path, "b" * 64)
    put_back(tmp_path, first.sequence, by="policy", reason="its run died")
    put_back(tmp_path, first.sequence, by="policy", reason="its run died")
    assert [entry.kind for entry in in_folder(tmp_path).entries()].count("dataset put back") == 1
    assert holders(in_folder(tmp_path)) == {}
    assert take(tmp_path, "r2", "/data/b", "b" * 64) == first
    assert take(tmp_path, "r3", "/data/b", "b" * 64).path == "/data/c"


def test_an_event_of_what_nobody_registered_takes_nothing(tmp_path):
    three(tmp_path)
    for path, digest in (("/data/d", "d" * 64), ("/data/a", "b" * 64)):
        with pytest.raises(InputError, match="nobody registered"):
            take(tmp_path, "r1", path, digest)
    assert holders(in_folder(tmp_path)) == {}


def test_who_registers_again_is_told_whether_it_was_trained_on(tmp_path, data, manifest, capsys, monkeypatch):
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    told = ["data", "register", str(data), "--runs", str(tmp_path)]
    assert main(told) == main(told) == 0
    assert "waits for its run" in capsys.readouterr().out
    end(tmp_path, manifest.digest)
    assert main(told) == 0
    assert "was trained on" in capsys.readouterr().out


def test_each_dataset_may_have_a_config_of_its_own(tmp_path, data, manifest, monkeypatch):
    """One for all would let unrelated datasets fight for one champion."""
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    own = tmp_path / "own.yaml"
    own.write_text(f"name: own\nbase_model: {{source: none}}\ndataset: {{source: {json.dumps(str(data))}}}\n")
    told = ["data", "register", str(data), "--runs", str(tmp_path)]
    assert main(told) == main([*told, "--config", str(own)]) == main([*told, "--config", str(own)]) == 0
    assert [entry.details.get("config") for entry in in_folder(tmp_path).entries() if entry.kind == "dataset"] == [
        None, str(own),
    ]  # fmt: skip
    assert take(tmp_path, "r1", manifest.path, manifest.digest).config == str(own)
    own.write_text("name: own\n")
    assert main([*told, "--config", str(own)]) == 2


def test_sent_again_it_may_be_taken_again(tmp_path, data, manifest, monkeypatch):
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    told = ["data", "register", str(data), "--runs", str(tmp_path)]
    assert main(told) == 0
    first = take(tmp_path, "r1", manifest.path, manifest.digest)
    for again in ([*told, "--again"], ["data", "pending", "--send", "--runs", str(tmp_path)]):
        assert main(again) == 0
        assert take(tmp_path, again[1], manifest.path, manifest.digest) == first


def test_a_run_that_did_not_end_leaves_its_dataset_pending(tmp_path, manifest):
    root = tmp_path / "runs"
    note(root, manifest)
    (root / "r1").mkdir()
    run_entries.closed(root / "r1", sources={"train": manifest.digest})
    assert len(pending(root)) == 1


def test_an_event_is_taken_only_with_a_registration_and_its_bytes(tmp_path, data, manifest):
    root, digest = tmp_path / "runs", manifest.digest
    with pytest.raises(InputError, match="nobody registered"):
        admit(root, str(data), digest, digest)
    note(root, manifest)
    assert admit(root, str(data), digest, digest).digest == digest
    for named, there in (("0" * 64, digest), (digest, "0" * 64)):
        with pytest.raises(InputError, match="are not those of the event"):
            admit(root, str(data), named, there)
    with pytest.raises(InputError, match="outside the folders"):
        admit(root, str(data), digest, digest, (str(tmp_path / "elsewhere"),))


def test_a_changed_ledger_admits_nothing(tmp_path, data, manifest):
    root = tmp_path / "runs"
    note(root, manifest)
    path = in_folder(root).path
    path.write_text(path.read_text().replace(manifest.digest, "0" * 64))
    with pytest.raises(InputError, match="is not whole"):
        admit(root, str(data), "0" * 64, "0" * 64)


def test_a_link_out_of_the_allowed_folder_is_followed(tmp_path, data):
    allowed = tmp_path / "allowed"
    allowed.mkdir()
    (allowed / "rows.jsonl").symlink_to(data)
    with pytest.raises(InputError, match="outside the folders"):
        inside(str(allowed / "rows.jsonl"), (str(allowed),))
    with pytest.raises(InputError, match="outside the folders"):
        inside(str(allowed / ".." / "data" / data.name), (str(allowed),))


class Server(BaseHTTPRequestHandler):
    """Takes events with the right login, as a Prefect server with an auth string does."""

    taken: ClassVar[list] = []

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        known = self.headers.get("Authorization") == "Basic YWRtaW46cGFzcw=="
        if known:
            self.taken.extend(json.loads(body))
        self.send_response(204 if known else 401)
        self.end_headers()

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    Server.taken.clear()
    made = HTTPServer(("127.0.0.1", 0), Server)
    Thread(target=made.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{made.server_port}/api"
    made.shutdown()
    made.server_close()


def test_the_event_has_prefects_login_and_the_status_is_shown(server, manifest, monkeypatch):
    monkeypatch.delenv("PREFECT_API_AUTH_STRING", raising=False)
    with pytest.raises(WorldError, match=r"HTTP 401 .*PREFECT_API_AUTH_STRING"):
        emit_registered(manifest.path, manifest.digest, server)
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "admin:pass")
    emit_registered(manifest.path, manifest.digest, server)
    [event] = Server.taken
    assert event["payload"] == {"path": manifest.path, "sha256": manifest.digest}


def test_what_is_pending_is_sent_from_the_ledger_alone(tmp_path, data, server, monkeypatch, capsys):
    """Whatever the runs folder is called, and as often as it is asked for."""
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    root = tmp_path / "elsewhere"
    assert main(["data", "register", str(data), "--runs", str(root)]) == 0
    monkeypatch.setenv("PREFECT_API_URL", server)
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "admin:pass")
    assert main(["data", "pending", "--runs", str(root), "--send"]) == 0
    digest = look_at(data).digest
    assert [event["payload"] for event in Server.taken] == [{"path": str(data.resolve()), "sha256": digest}]
    assert str(data.resolve()) in capsys.readouterr().out
