"""What retraining says of its rows, beside those of the present champion."""

import books
from books import MODEL, PASSED

from lora_select.audit.alias.promotion import promote
from lora_select.data.intake import intake
from lora_select.pipeline import workspace
from lora_select.pipeline.stage import Place
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
