"""A stage is done when its record is there and names files that are there; nothing half-written is taken for done."""

import json
import shutil

import pytest

from lora_select.pipeline import workspace as store
from lora_select.records import Report, file_ref


@pytest.fixture
def stage(tmp_path):
    folder = store.folder_of(tmp_path, "report", "k1")
    folder.mkdir(parents=True)
    (folder / "report.html").write_text("<p>hello</p>")
    store.write(folder, Report(file_ref(folder / "report.html", folder)))
    return tmp_path, folder


def test_finished_stage_is_found_and_loads(stage):
    root, _ = stage
    ref = store.finished(root, "report", "k1")
    assert ref is not None
    assert store.load(root, ref, Report).file.path == "report.html"


@pytest.mark.parametrize("harm", ["no record", "torn record", "file gone", "file cut"])
def test_unfinished_or_damaged_stage_is_not_finished(stage, harm):
    root, folder = stage
    if harm == "no record":
        (folder / "record.json").unlink()
    elif harm == "torn record":
        (folder / "record.json").write_text((folder / "record.json").read_text()[:40])
    elif harm == "file gone":
        (folder / "report.html").unlink()
    else:
        (folder / "report.html").write_text("<p>")
    assert store.finished(root, "report", "k1") is None


def test_what_is_set_aside_stays_though_some_of_it_was_deleted(stage):
    root, folder = stage
    kept = []
    for text in ("one", "two", "three"):
        folder.mkdir(exist_ok=True)
        (folder / "report.html").write_text(text)
        kept.append(store.set_aside(root, "report", "k1"))
        if text == "two":
            shutil.rmtree(kept[0])
    assert [(place / "report.html").read_text() for place in kept[1:]] == ["two", "three"]


def test_run_view_and_latest(stage):
    root, folder = stage
    ref = store.finished(root, "report", "k1")
    assert ref is not None
    for run in ("r1", "r2"):
        store.view(root, run, ref, "report")
        store.link(root, run, folder / "report.html", "report.html")
        store.point_latest(root, run)
    assert (root / "latest").resolve() == (root / "r2").resolve()
    assert (root / "latest" / "report.html").read_text() == "<p>hello</p>"
    assert not (root / "latest" / "report.html").readlink().is_absolute()
    assert json.loads((root / "latest" / "report.json").read_text())["file"]["path"] == "report.html"
