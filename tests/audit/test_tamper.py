"""One bit and one digit of every file of a run: each is named by `verify`, and nothing changed is used again."""

import dataclasses
import re
import shutil
from pathlib import Path

import books
import mlflow_samples as samples
import pytest

from lora_select import records
from lora_select.audit import run_entries
from lora_select.audit.books import seal
from lora_select.audit.verification import verify
from lora_select.errors import InputError, WorldError
from lora_select.pipeline import workspace


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    root = tmp_path_factory.mktemp("books") / "runs"
    run = books.finished_run(root)
    run_entries.closed(run, sources={"train": "d" * 64}, model="tweets")
    return root


@pytest.fixture
def root(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "runs", symlinks=True))


def files_of(root: Path) -> list[Path]:
    """Every file of the run: its own and those of its stages."""
    folders = [root / "r1", *(place.folder for place in run_entries.stages(root / "r1").values())]
    found = [folder / path for folder in folders for path in seal.listing(folder)]
    return [*(path for path in found if not path.is_symlink()), *(folder / seal.SEAL for folder in folders)]


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def change_digit(path: Path) -> bool:
    """The last digit of the file becomes another; False where there is none."""
    text = path.read_bytes()
    digits = [match.start() for match in re.finditer(rb"[0-9]", text)]
    if not digits:
        return False
    place = digits[-1]
    path.write_bytes(text[:place] + (b"8" if text[place : place + 1] != b"8" else b"3") + text[place + 1 :])
    return True


def test_an_untouched_run_verifies(root):
    found = verify(root / "latest")
    assert found.faults == ()
    assert (
        found.files == len(files_of(root)) - 4 + 1
    )  # the seals speak for the others; the link to the adapter is looked at


@pytest.mark.parametrize("harm", [flip_bit, change_digit])
def test_every_file_is_guarded(root, harm):
    kept = root.with_name("kept")
    for path in files_of(root):
        shutil.copy2(path, kept)
        if harm(path) is False:
            continue
        faults = verify(root / "r1").faults
        assert any(str(path) in fault for fault in faults), (path, faults)
        shutil.copy2(kept, path)
    assert verify(root / "r1").faults == ()


def test_a_changed_stage_is_not_finished_and_says_which_file(root):
    stages = run_entries.stages(root / "r1")
    for place in stages.values():
        stage, key = place.folder.parent.name, place.folder.name
        assert workspace.finished(root, stage, key) is not None
        for name in [*seal.listing(place.folder), seal.SEAL]:
            kept = (place.folder / name).read_bytes()
            flip_bit(place.folder / name)
            assert workspace.finished(root, stage, key) is None, name
            assert any(fault.path == place.folder / name for fault in workspace.changes(root, stage, key)), name
            (place.folder / name).write_bytes(kept)


def test_a_restored_time_stamp_hides_nothing(root, monkeypatch):
    import os

    monkeypatch.setattr(seal, "RACY_NS", 0)  # the files are seconds old; only the time stamps may tell
    path = run_entries.stages(root / "r1")["adapter"].folder / "adapter" / "adapter_model.safetensors"
    before = path.stat()
    assert seal.faults(path.parents[1]) == []
    flip_bit(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert [fault.path for fault in seal.faults(path.parents[1])] == [path]


def test_a_file_that_was_put_there_is_named(root):
    planted = run_entries.stages(root / "r1")["adapter"].folder / "adapter" / "adapter_model.bin"
    planted.write_bytes(b"pickle")
    assert any(str(planted) in fault for fault in verify(root / "r1").faults)
    with pytest.raises(WorldError, match="adapter_model.bin was put there since"):
        run_entries.adapter_folder(root / "r1")


def test_a_forger_who_seals_anew_is_seen_by_the_run_and_the_ledger(root):
    place = run_entries.stages(root / "r1")["adapter"]
    flip_bit(place.folder / "adapter" / "adapter_model.safetensors")
    seal.write(place.folder)
    assert any("was written anew" in fault for fault in verify(root / "r1").faults)
    ref = workspace.StageRef(place.folder.parent.name, place.folder.name, place.record)
    workspace.view(root, "r1", ref, "adapter")
    seal.write(root / "r1")
    assert any("is not the seal that the ledger's entry" in fault for fault in verify(root / "r1").faults)
    run_entries.ledger_of(root / "r1").path.unlink()
    assert any("no entry of this run" in fault for fault in verify(root / "r1").faults)


def test_export_takes_the_adapter_that_was_checked_not_what_a_link_says(root, tmp_path):
    folder = run_entries.adapter_folder(root / "latest")
    assert folder == run_entries.stages(root / "r1")["adapter"].folder / "adapter"
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    (root / "r1" / "adapter").unlink()
    (root / "r1" / "adapter").symlink_to(other)
    assert run_entries.adapter_folder(root / "r1") == folder
    assert any("r1/adapter was changed" in fault for fault in verify(root / "r1").faults)
    flip_bit(folder / "adapter_config.json")
    with pytest.raises(WorldError, match="adapter_config.json was changed since it was made"):
        run_entries.adapter_folder(root / "latest")


def test_a_plain_folder_is_an_adapter_too_and_nothing_is_no_adapter(root, tmp_path):
    plain = Path(shutil.copytree(run_entries.adapter_folder(root / "r1"), tmp_path / "plain"))
    assert run_entries.adapter_folder(plain) == plain
    with pytest.raises(InputError, match="holds no adapter"):
        run_entries.adapter_folder(tmp_path)


def test_a_run_is_opened_and_what_was_changed_is_set_aside(root):
    run = root / "r1"
    flip_bit(run / "config.json")
    lines = run_entries.opened(run)
    assert [line.split(" ")[0] for line in lines] == [str(run / "config.json")]
    assert not (run / "config.json").exists()
    assert len(list((root / "changed").iterdir())) == 1
    assert not (run / seal.SEAL).exists()


def test_a_changed_stage_is_named_when_the_run_is_opened(root):
    for place in run_entries.stages(root / "r1").values():
        flip_bit(place.folder / "record.json")
    named = [line.split(" ")[0] for line in run_entries.opened(root / "r1")]
    assert sorted(named) == sorted(
        str(place.folder / "record.json") for place in run_entries.stages(root / "r1").values()
    )


def test_the_same_end_is_entered_once(root):
    ledger = run_entries.ledger_of(root / "r1")
    before = len(ledger.entries())
    run_entries.opened(root / "r1")
    run_entries.closed(root / "r1", sources={"train": "d" * 64}, model="tweets")
    assert len(ledger.entries()) == before
    assert verify(root / "r1").faults == ()


def test_an_attempt_that_a_kill_left_is_no_fault(tmp_path):
    folder = workspace.folder_of(tmp_path, "report", "k")
    folder.mkdir(parents=True)
    (folder / "report.html").write_text("x")
    record = records.Report(records.file_ref(folder / "report.html", folder))
    seal.write(folder, {"record.json": records.to_json(record)})  # killed before the record
    assert workspace.finished(tmp_path, "report", "k") is None
    assert workspace.changes(tmp_path, "report", "k") == []
    (folder / "report.html").write_text("y")
    assert [fault.path.name for fault in workspace.changes(tmp_path, "report", "k")] == ["report.html"]
    assert workspace.set_aside(tmp_path, "report", "k").is_dir()
    assert not folder.exists()


def test_a_used_stage_is_looked_at_again(root):
    place = run_entries.stages(root / "r1")["profile"]
    ref = workspace.StageRef("profile", place.folder.name, place.record)
    assert workspace.intact(root, ref) == place.folder
    flip_bit(place.folder / "record.json")
    with pytest.raises(WorldError, match="record.json was changed since"):
        workspace.load(root, ref, records.DatasetProfile)
    with pytest.raises(WorldError, match="record.json was changed since"):
        workspace.intact(root, ref)


def test_checkpoints_go_when_the_run_has_ended(root):
    folder = run_entries.stages(root / "r1")["adapter"].folder
    (folder / "checkpoints" / "step-4").mkdir(parents=True)
    (folder / "checkpoints" / "step-4" / "optimizer.safetensors").write_bytes(b"x" * 100)
    assert verify(root / "r1").faults == ()
    assert run_entries.drop_checkpoints(folder) == 100
    assert verify(root / "r1").faults == ()
    assert workspace.finished(root, "adapter", folder.name) is not None


@pytest.mark.parametrize("other", [False, True])
def test_a_proof_of_another_adapter_than_the_one_that_is_served_is_named(tmp_path, other):
    root = tmp_path / "runs"
    run = books.finished_run(root)
    digest = "0" * 64 if other else records.read(records.Adapter, run / "adapter.json").digest
    proof = dataclasses.replace(samples.proof(), adapter_digest=digest)
    for name, make in (("served", samples.adapter), ("served-proof", lambda _: proof)):
        folder = workspace.folder_of(root, name, f"r1{name}")
        folder.mkdir(parents=True)
        workspace.write(folder, make(folder))
        ref = workspace.finished(root, name, f"r1{name}")
        assert ref is not None
        workspace.view(root, "r1", ref, name)
    run_entries.closed(run, sources={"train": "d" * 64}, model="tweets")
    named = (f"{run / 'served-proof.json'} is the proof of another adapter",)
    assert verify(run).faults == (named if other else ())
