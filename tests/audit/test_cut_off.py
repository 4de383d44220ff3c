"""The connection to a real MLflow server, and to a real PostgreSQL, cut at every so many messages of a promotion: nothing is lost or done twice."""

import shutil
import socket
import threading
from contextlib import suppress
from pathlib import Path

import books
import mlflow_samples as samples
import pytest
from books import PASSED
from services import postgres
from services.home import Home
from stack_harness import home_folder

from lora_select.audit.alias import standing
from lora_select.audit.alias.promotion import DEFERRED, Candidate, promote
from lora_select.audit.books import chain
from lora_select.tracking import registry
from lora_select.tracking.store import prepare

pytestmark = [pytest.mark.fault, pytest.mark.timeout(1800)]


class Cable:
    """A port that leads to another one until `left` messages of a client have passed; then all connections end, and none is made."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._ends: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.left = 10**9
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            with suppress(OSError):
                client, _ = self._listener.accept()
                if self.left <= 0:
                    client.close()
                    continue
                server = socket.create_connection(("127.0.0.1", self._target))
                self._ends += [client, server]
                for source, sink, counts in ((client, server, True), (server, client, False)):
                    threading.Thread(target=self._carry, args=(source, sink, counts), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket, counts: bool) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                self.left -= counts
                if self.left < 0:
                    break
                sink.sendall(data)
        ends = [source, sink] if self.left >= 0 else self._ends
        for end in list(ends):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def mlflow_server(template, tmp_path):
    shutil.copy(template, tmp_path / "mlflow.db")
    port = samples.free_port()
    with samples.server(tmp_path / "mlflow.db", port):
        cable = Cable(port)
        yield cable, f"http://127.0.0.1:{cable.port}"


@pytest.fixture
def database_server(tmp_path, monkeypatch):
    if shutil.which("initdb") is None:
        pytest.skip("needs PostgreSQL's own binaries")
    with home_folder() as place:
        home = Home(place / "one")
        postgres.start(home)
        monkeypatch.chdir(tmp_path)  # where artifacts go
        monkeypatch.setenv("PASSWORD", home.secret("mlflow_password"))
        cable = Cable(home.port("postgres"))
        yield cable, f"postgresql+psycopg2://mlflow:${{PASSWORD}}@127.0.0.1:{cable.port}/mlflow"


@pytest.mark.parametrize(
    ("server", "stride", "name"),
    [("mlflow_server", 2, "MLflow's server"), ("database_server", 40, "PostgreSQL")],
)
def test_a_connection_cut_at_any_message_of_a_promotion(request, tmp_path, outcome, server, stride, name):
    cable, address = request.getfixturevalue(server)
    office_of = prepare(address, "test")
    deferred = 0
    for cut in range(0, 100 * stride, stride):
        root: Path = tmp_path / f"runs-{cut}"
        office = books.office(root, office_of)
        run = books.finished_run(root)
        told = books.candidate(office, run)
        candidate = Candidate(**{**vars(told), "model": f"model-{cut}"})
        cable.left = cut
        first = promote(office, candidate, PASSED)
        whole, cable.left = cable.left > 0, 10**9
        assert first.alias in ("champion", DEFERRED)
        deferred += first.alias == DEFERRED
        assert promote(office, candidate, PASSED).alias == "champion"
        entries = office.ledger.entries()
        assert [entry.kind for entry in entries].count("promoted") == 1, cut
        assert chain.check(office.ledger.path).faults == ()
        assert standing.unfinished(entries) == standing.unexplained(tuple(entries), office_of) == []
        assert registry.by_alias(office_of, candidate.model).version == "1"
        if whole:
            break
    else:
        raise AssertionError("a promotion sends more messages than were tried")
    assert deferred > 2
    outcome(
        f"the connection to {name} cut at each of {cut // stride} points of a promotion",
        f"{deferred} times the promotion was deferred; the same command promoted, once",
    )
