"""What the line holds against a run for its rows: beside those of the present champion, and where they give the test away."""

import json
import shutil

import books
from books import MODEL, PASSED

from lora_select import records
from lora_select.audit.alias.promotion import promote
from lora_select.data.gate.mend import gated_intake
from lora_select.data.intake import intake
from lora_select.pipeline import history, workspace
from lora_select.pipeline.stage import Place
from lora_select.pipeline.stages import judge
from lora_select.pipeline.stages.change import compare, earlier_dataset
from lora_select.tracking.tracker import Tracker


def test_a_retraining_is_told_how_its_rows_differ_from_the_champions(store, tmp_path):
    root = tmp_path / "runs"
    office = books.office(root, store)

    def trained(key, rows):
        run = books.finished_run(root, key, "lora" if key == "r1" else "dora")
        folder = workspace.folder_of(root, "intake", key)
        workspace.write(folder, intake(source=rows, name="tweets", folder=folder))
        ref = workspace.finished(root, "intake", key)
        assert ref is not None
        workspace.view(root, key, ref, "dataset")
        return run, ref

    rows = [{"prompt": f"question {n} of many", "completion": f"answer {n}"} for n in range(60)]
    first, old = trained("r1", rows)
    second, new = trained("r2", [*rows, {"prompt": "one more", "completion": "yes"}])
    folder = tmp_path / "tracked"
    folder.mkdir()
    place = Place(root, Tracker.start(office.store, folder, "key", name="tweets"))
    assert earlier_dataset(place, "r1", MODEL) is None
    promote(office, books.candidate(office, first), PASSED)
    assert earlier_dataset(place, "r2", MODEL) == old
    change = compare(place, dataset=new, earlier=old).record
    assert (change.verdict, change.sentence) == ("grown", "grown by 1 row")
    promote(office, books.candidate(office, second, "1"), PASSED)
    assert earlier_dataset(place, "r2", MODEL) == old  # the champion itself: what it was judged against
    assert earlier_dataset(place, "r1", MODEL) == new
    (workspace.stage_folder(root, new) / "train.parquet").write_bytes(b"other")
    assert earlier_dataset(place, "r1", MODEL) is None


def test_rows_that_give_the_named_evaluation_rows_away_make_no_champion(store, tmp_path):
    root = tmp_path / "runs"
    office, run = books.office(root, store), books.finished_run(root)
    sections = {"base_model": {"source": "b"}, "dataset": {"source": "d"}}
    records.write_text(run / "config.json", json.dumps({"name": "tweets", **sections}))
    rows = [{"prompt": f"question {n} of many", "completion": f"answer {n}"} for n in range(40)]

    def judged(**options):
        refs = {}
        key = f"{len(options)}"
        read = tmp_path / key
        dataset, found = gated_intake(folder=read, source=rows, name="d", actions={"leak": "warn"}, **options)
        for name, record in (("dataset", dataset), ("gate", found)):
            folder = shutil.copytree(read, workspace.folder_of(root, name, key))
            workspace.write(folder, record)
            refs[name] = workspace.finished(root, name, key)
            workspace.view(root, run.name, refs[name], name)
        return judge.leaks(dataset, found), refs

    assert judged()[0] == 0
    count, refs = judged(eval_source=rows[:6])
    assert count == 6
    made = books.promoted(office, run, rows=refs).record
    assert (made.alias, made.verdict.answer) == ("challenger", "refuse")
    assert made.verdict.reasons[0].startswith("6 of the evaluation rows")
    assert history._verdict_again(run) == []
