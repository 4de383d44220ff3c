"""Odd and bad files: canonical rows, a counted rejection with file and line, or one sentence; never a traceback, never a lost row."""

import json

import pytest
from odd_files import CASES, link

from lora_select.data.intake import intake
from lora_select.errors import InputError


def test_there_are_enough_of_them():
    assert len(CASES) >= 150


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_row_is_kept_counted_or_the_source_refused(case, tmp_path):
    for name, data in case.files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    link(tmp_path, case.links)
    options = {"name": "odd", "folder": tmp_path / "out", "eval_fraction": 0.0, "least_eval": 0}
    source = str(tmp_path / case.source)
    if case.stops:
        with pytest.raises(InputError, match=case.stops.replace("(", r"\(")) as caught:
            intake(source=source, **options)
        assert "Traceback" not in str(caught.value)
        assert len(str(caught.value)) < 900
        return
    dataset = intake(source=source, **options)
    kept = dataset.train_rows + dataset.eval_rows
    counts = {item.reason: item.count for item in dataset.rejected}
    assert kept == case.kept
    assert sum(file.rows for file in dataset.sources) == kept + sum(counts.values())
    assert sum(counts.values()) == sum(case.left.values())
    for reason, count in case.left.items():
        assert sum(n for said, n in counts.items() if reason in said) == count, counts
    unread = {item.name for item in dataset.left_out}
    assert set(case.unread) <= unread
    listed = [json.loads(line) for line in (tmp_path / "out/rejected.jsonl").read_text().splitlines()]
    assert len(listed) == sum(counts.values())
    assert all(item["line"] >= 1 and item["file"] for item in listed)
