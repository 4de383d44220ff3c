"""A stage is run once and taken up by every runner; observers hear of it and change nothing."""

import dataclasses
from contextlib import contextmanager

import pytest

from lora_select.errors import InputError
from lora_select.pipeline import workspace
from lora_select.pipeline.stage import Observer, Place, Stage
from lora_select.records import Report, file_ref


class Heard(Observer):
    def __init__(self):
        self.events = []

    def said(self, line):
        self.events.append(("said", line))

    def began(self, work):
        self.events.append(("began", work.label))

    @contextmanager
    def progress(self, work):
        yield lambda done, total, what: self.events.append(("progress", done, total, what))

    def failed(self, work, error):
        self.events.append(("failed", work.label, str(error)))

    def finished(self, work, record, *, reused, seconds):
        self.events.append(("finished", work.label, reused))


def write(context, *, text, harm=""):
    context.report(1, 2, "writing")
    if harm == "bad":
        raise InputError("not so")
    file = context.folder / "report.html"
    file.write_text(text)
    ref = file_ref(file, context.folder)
    return Report(dataclasses.replace(ref, size=ref.size + 1) if harm == "cut" else ref)


STAGE = Stage("report", Report, write)


def test_the_first_use_works_and_the_second_takes_up(tmp_path):
    heard = Heard()
    place = Place(tmp_path, observers=(heard,))
    first, second = (STAGE(place, label="page", text="a") for _ in range(2))
    assert (first.reused, second.reused) == (False, True)
    assert first.ref == second.ref
    assert first.record == second.record
    assert heard.events == [
        ("began", "page"),
        ("progress", 1, 2, "writing"),
        ("finished", "page", False),
        ("finished", "page", True),
    ]


def test_another_input_is_other_work_and_another_folder_is_the_same(tmp_path):
    first = STAGE(Place(tmp_path), text="a")
    assert STAGE(Place(tmp_path), text="b").ref.key != first.ref.key
    assert STAGE(Place(tmp_path / "elsewhere"), text="a").ref == first.ref
    signed = STAGE(Place(tmp_path), text="a", key_only={"signed_by": "ann"})
    assert (signed.record, signed.reused) == (first.record, False)
    assert signed.ref.key != first.ref.key


def test_a_runner_may_answer_without_the_work_or_try_it_twice(tmp_path):
    made = STAGE(Place(tmp_path), text="a")

    def cached(work):
        assert not work.fresh
        return made.ref

    assert STAGE(Place(tmp_path, runner=cached), text="a").reused
    tried = []

    def again(work):
        tried.append(work.fresh)
        work.call()
        return work.call()

    outcome = STAGE(Place(tmp_path, runner=again), text="c")
    assert tried == [True]
    assert not outcome.reused


@pytest.mark.parametrize(("harm", "error"), [("bad", InputError), ("cut", RuntimeError)])
def test_work_without_a_record_that_holds_is_not_finished(tmp_path, harm, error):
    heard = Heard()
    with pytest.raises(error):
        STAGE(Place(tmp_path, observers=(heard,)), text="a", harm=harm)
    assert ("finished", "report", False) not in heard.events
    assert (("failed", "report", "not so") in heard.events) == (harm == "bad")
    [folder] = [path for path in (tmp_path / "stages" / "report").iterdir() if path.is_dir()]
    assert workspace.finished(tmp_path, "report", folder.name) is None
