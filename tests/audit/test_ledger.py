"""An entry that was written stays, and whatever is done to the file afterwards is named."""

import dataclasses
import json
import multiprocessing
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest

from lora_select.audit.books import anchor, chain
from lora_select.audit.books.ledger import NOTHING, Ledger, sealed, to_line
from lora_select.errors import WorldError


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "ledger.jsonl")


def fill(ledger, count=4):
    for number in range(count):
        ledger.append("decision", model="tweets", run=f"r{number}", details={"number": number})
    return ledger.path.read_bytes().split(b"\n")[:-1]


def test_entries_come_back_and_the_chain_holds(ledger):
    fill(ledger)
    found = chain.check(ledger.path)
    assert (found.faults, found.notes) == ((), ())
    assert [entry.kind for entry in found.entries] == ["opened"] + ["decision"] * 4
    assert found.entries[0].previous == NOTHING
    assert [entry.sequence for entry in ledger.of(run="r2")] == [3]


def test_text_of_any_kind_is_one_line(ledger):
    for text in ('a\nb"', "line\u2028separator\x85", "ü €"):
        ledger.append("rejected", by="Ann", details={"reason": text})
    assert [entry.details["reason"] for entry in ledger.entries()[1:]] == ['a\nb"', "line\u2028separator\x85", "ü €"]
    assert chain.check(ledger.path).faults == ()


def edited(lines):
    return [*lines[:2], lines[2].replace(b'"number":1', b'"number":7'), *lines[3:]], "entry 2 (line 3) was edited"


def spelt_otherwise(lines):
    return [*lines[:2], json.dumps(json.loads(lines[2])).encode(), *lines[3:]], "entry 2 (line 3) was edited"


def dropped(lines):
    return lines[:2] + lines[3:], "entry 2 was dropped"


def two_dropped(lines):
    return lines[:2] + lines[4:], "entries 2 to 3 were dropped"


def swapped(lines):
    return [*lines[:2], lines[3], lines[2], *lines[4:]], "entry 2 is out of order"


def first_dropped(lines):
    return lines[1:], "entry 0 was dropped"


def garbled(lines):
    return [*lines[:2], lines[2][:-9], *lines[3:]], "line 3 was edited"


@pytest.mark.parametrize("harm", [edited, spelt_otherwise, dropped, two_dropped, swapped, first_dropped, garbled])
def test_what_was_done_to_the_file_is_named(ledger, harm):
    lines, words = harm(fill(ledger))
    ledger.path.write_bytes(b"\n".join(lines) + b"\n")
    assert any(fault.startswith(words) for fault in chain.check(ledger.path).faults)


def test_an_entry_that_was_replaced_by_a_well_formed_one_is_named(ledger):
    fill(ledger)
    entries = ledger.entries()
    entries[2] = sealed(dataclasses.replace(entries[2], details={"number": 7}))
    ledger.path.write_text("".join(to_line(entry) + "\n" for entry in entries))
    assert chain.check(ledger.path).faults == ("entry 3 does not follow from entry 2: one of the two was replaced",)


def test_every_bit_of_an_entry_counts(ledger):
    fill(ledger, 1)
    content = ledger.path.read_bytes()
    start = content.index(b"\n") + 1
    for place in range(start, len(content), 7):
        harmed = bytearray(content)
        harmed[place] ^= 1
        ledger.path.write_bytes(bytes(harmed))
        found = chain.check(ledger.path)
        assert found.faults or found.notes, (place, content[place : place + 1])


def test_a_torn_last_line_is_cut_off_and_written_down(ledger):
    lines = fill(ledger, 2)
    with ledger.path.open("ab") as stream:
        stream.write(lines[1][:40])
    found = chain.check(ledger.path)
    assert (len(found.entries), found.faults, len(found.notes)) == (3, (), 1)
    entry = ledger.append("decision")
    assert (entry.sequence, entry.details["torn"]["bytes"]) == (3, 40)
    assert chain.check(ledger.path).faults == ()


def test_a_clock_set_back_is_a_note_and_changes_no_order(tmp_path):
    moments = iter(datetime(2026, 3, 1, tzinfo=UTC) + timedelta(hours=hours) for hours in (0, 0, -5, 1))
    ledger = Ledger(tmp_path / "ledger.jsonl", clock=lambda: next(moments))
    fill(ledger, 3)
    found = chain.check(ledger.path)
    assert found.faults == ()
    assert len(found.notes) == 1
    assert "entry 2 has an earlier time than entry 1" in found.notes[0]


def _write_many(path, name):
    for number in range(20):
        Ledger(path).append("decision", run=f"{name}-{number}")


def test_writers_at_once_lose_nothing(ledger):
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_many, args=(ledger.path, name)) for name in "abcd"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    found = chain.check(ledger.path)
    assert found.faults == ()
    assert len(found.entries) == 81
    for name in "abcd":
        assert [e.run for e in found.entries if e.run.startswith(name)] == [f"{name}-{n}" for n in range(20)]


FULL = """
import resource, signal, sys
from pathlib import Path
from lora_select.audit.books.ledger import Ledger
from lora_select.errors import WorldError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
path = Path(sys.argv[1])
size = path.stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, size + 100))
try:
    Ledger(path).append("decision", details={"text": "x" * 500})
except WorldError as error:
    print(error)
    sys.exit(0 if path.stat().st_size == size else 3)
sys.exit(4)
"""


def test_no_room_for_an_entry_leaves_the_ledger_as_it_was(ledger):
    """The kernel refuses the write half-way, as a full disk does."""
    fill(ledger, 2)
    before = ledger.path.read_bytes()
    done = subprocess.run([sys.executable, "-c", FULL, str(ledger.path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "cannot be written" in done.stdout
    assert ledger.path.read_bytes() == before
    assert ledger.append("decision").sequence == 3


def test_a_last_line_that_is_no_entry_is_not_built_upon(ledger):
    lines = fill(ledger, 2)
    ledger.path.write_bytes(b"\n".join([*lines[:2], b"{}"]) + b"\n")
    with pytest.raises(WorldError, match="line 3 .* is no entry"):
        ledger.append("decision")


def test_the_head_in_mlflow_sees_a_cut_end(ledger, store):
    lines = fill(ledger)
    assert anchor.push(ledger, store) is None
    whole = chain.check(ledger.path)
    assert anchor.faults(ledger, whole.entries, store) == []
    ledger.path.write_bytes(b"\n".join(lines[:3]) + b"\n")
    cut = chain.check(ledger.path)
    assert cut.faults == ()
    [fault] = anchor.faults(ledger, cut.entries, store)
    assert fault.startswith("entries 3 to 4 were cut off at the end")
    ledger.append("decision")  # what follows a cut is not taken for the ledger that MLflow knows
    assert anchor.push(ledger, store) is not None
    ledger.append("decision")
    [fault] = anchor.faults(ledger, chain.check(ledger.path).entries, store)
    assert "written anew" in fault


def test_a_ledger_that_was_begun_anew_is_seen(ledger, store):
    fill(ledger)
    anchor.push(ledger, store)
    ledger.path.unlink()
    assert "another ledger was kept here" in anchor.faults(ledger, (), store)[0]
    fill(ledger, 6)
    assert "another ledger was kept here" in anchor.faults(ledger, chain.check(ledger.path).entries, store)[0]


def test_the_ledger_is_an_artifact_too(ledger, store):
    fill(ledger)
    run = store.client.create_run(store.experiment_id)
    anchor.push(ledger, store, run_id=run.info.run_id)
    [found] = store.client.list_artifacts(run.info.run_id, "ledger")
    assert found.file_size == ledger.path.stat().st_size
