"""Bounded memory, order that does not matter, splits that keep groups whole, and what a kill leaves."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from lora_select.data.intake import intake, read_canonical, read_places
from lora_select.data.likeness import splitting
from lora_select.data.reading.source_files import list_source, split_of
from lora_select.data.store import identity, spill
from lora_select.errors import InputError


def write(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path


def pairs(count, offset=0):
    return [{"prompt": f"question {n}", "completion": f"answer {n}"} for n in range(offset, offset + count)]


def prompts(folder, name):
    return [row["messages"][0]["content"] for _, row in read_canonical(folder / f"{name}.parquet")]


def test_a_test_file_is_held_out_and_never_trained_on(tmp_path):
    write(tmp_path / "d/train.jsonl", pairs(40))
    write(tmp_path / "d/test.jsonl", pairs(20, 1000))
    dataset = intake(source=str(tmp_path / "d"), name="d", folder=tmp_path / "out")
    assert (dataset.train_rows, dataset.eval_rows) == (40, 20)
    assert all(int(prompt.split()[1]) < 1000 for prompt in prompts(tmp_path / "out", "train"))
    write(tmp_path / "d/validation.jsonl", pairs(5, 2000))
    both = intake(source=str(tmp_path / "d"), name="d", folder=tmp_path / "out2")
    assert (both.train_rows, both.eval_rows) == (40, 5)
    assert [(item.name, "held out" in item.reason) for item in both.left_out] == [("test.jsonl", True)]
    own = intake(
        source=str(tmp_path / "d"),
        name="d",
        folder=tmp_path / "out3",
        eval_source=str(write(tmp_path / "own.jsonl", pairs(4, 3000))),
    )
    assert (own.train_rows, own.eval_rows) == (40, 4)
    assert {item.name for item in own.left_out} == {"test.jsonl", "validation.jsonl"}
    named = intake(source=str(tmp_path / "d"), name="d", folder=tmp_path / "out4", split="test", eval_fraction=0.2)
    assert named.train_rows + named.eval_rows == 20


def test_names_of_splits():
    for path, split in {
        "train.jsonl": "train",
        "data/validation-00000.parquet": "validation",
        "dev/x.json": "validation",
        "my-test.csv": "test",
        "held_out.jsonl": "test",
        "contest.jsonl": None,
        "trained.jsonl": None,
        "latest.jsonl": None,
    }.items():
        assert split_of(path) == split, path


def test_one_prompt_for_all_rows_is_split_row_by_row_and_said(tmp_path):
    rows = [{"prompt": "write a limerick", "completion": f"limerick number {n} of many"} for n in range(100)]
    dataset = intake(source=str(write(tmp_path / "r.jsonl", rows)), name="r", folder=tmp_path / "out")
    assert dataset.eval_rows == 10
    assert "all 100 rows have the same prompt" in dataset.eval_source


@pytest.mark.parametrize("seed", range(5))
def test_few_prompts_always_leave_rows_to_judge_on(tmp_path, seed):
    source = str(write(tmp_path / "r.jsonl", pairs(12)))
    dataset = intake(source=source, name="r", folder=tmp_path / "out", split_seed=seed)
    assert dataset.eval_rows >= 2
    assert dataset.train_rows + dataset.eval_rows == 12


def test_the_split_stays_as_the_data_grows_and_its_seed_is_its_own(tmp_path):
    draw = random.Random(0)
    rows = [{"prompt": " ".join(draw.choices("abcdefghijklmnop", k=30)), "completion": str(n)} for n in range(400)]

    def held(values, seed):
        folder = tmp_path / f"{len(values)}-{seed}"
        intake(source=str(write(tmp_path / "r.jsonl", values)), name="r", folder=folder, split_seed=seed)
        return set(prompts(folder, "eval"))

    before, after = held(rows[:300], 0), held(rows, 0)
    assert before <= after
    assert held(rows, 1) != after


def test_near_duplicates_never_fall_into_both_splits(tmp_path):
    draw = random.Random(1)
    rows = []
    for n in range(120):
        words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=7)) for _ in range(30)]
        for place in (3, 17):
            changed = [*words[:place], "changed", *words[place + 1 :]]
            rows.append({"prompt": f"{' '.join(changed)} {n}", "completion": f"answer {n} {place}"})
    dataset = intake(source=str(write(tmp_path / "r.jsonl", rows)), name="r", folder=tmp_path / "o", eval_fraction=0.3)
    sides = [{prompt.split()[-1] for prompt in prompts(tmp_path / "o", name)} for name in ("train", "eval")]
    assert not sides[0] & sides[1]
    assert "near-duplicates" in dataset.eval_source
    assert 0.15 * 240 <= dataset.eval_rows <= 0.45 * 240


def test_groups_join_prompts_and_near_rows():
    label = splitting.grouped(np.array([0, 1, 0, 3, 4]), np.array([0, 1, 2, 1, 4]))
    assert label.tolist() == [0, 1, 0, 1, 4]


def test_more_than_fits_is_sorted_on_disk_with_the_same_result(tmp_path, monkeypatch):
    draw = random.Random(2)
    rows = [
        spill.SpilledRow(f"{draw.randrange(2**256):064x}", "p", draw.randrange(3), n, 0, f"m{n}", "")
        for n in range(500)
    ]
    rows += [spill.SpilledRow(r.row_id, "p", 9, 7, 0, r.messages, "") for r in rows[:20]]
    results = []
    for most in (2**30, 3000):
        monkeypatch.setattr(spill, "HELD_BYTES", most)
        (tmp_path / str(most)).mkdir()
        buckets = spill.Buckets(tmp_path / str(most))
        for row in rows:
            buckets.add(row)
        assert bool(list((tmp_path / str(most)).iterdir())) == (most == 3000)
        results.append(list(buckets.sorted()))
        draw.shuffle(rows)
    assert results[0] == results[1]
    assert [copies[0].row_id for copies in results[0]] == sorted({row.row_id for row in rows})
    assert sum(map(len, results[0])) == 520


def test_a_damaged_end_leaves_the_files_of_before(tmp_path):
    source = write(tmp_path / "r.jsonl", pairs(30))
    before = intake(source=str(source), name="r", folder=tmp_path / "out")
    (tmp_path / "broken.json").write_text(json.dumps(pairs(30))[:-9])
    with pytest.raises(InputError):
        intake(source=str(tmp_path / "broken.json"), name="r", folder=tmp_path / "out")
    again = intake(source=str(source), name="r", folder=tmp_path / "out2")
    assert before.train_file.sha256 == again.train_file.sha256
    assert (tmp_path / "out" / "train.parquet").read_bytes() == (tmp_path / "out2" / "train.parquet").read_bytes()
    assert not list((tmp_path / "out").glob(".intake-*"))


def test_a_killed_intake_leaves_nothing_that_is_taken_up(tmp_path):
    fifo = tmp_path / "r.jsonl"
    write(fifo, pairs(40_000))
    code = f"from lora_select.data.intake import intake; from pathlib import Path; intake(source={str(fifo)!r}, name='r', folder=Path({str(tmp_path / 'out')!r}))"
    child = subprocess.Popen([sys.executable, "-c", code], env={**os.environ})
    while child.poll() is None and not list((tmp_path / "out").glob(".intake-*")):
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (tmp_path / "out/train.parquet").exists()
    assert list((tmp_path / "out").glob(".intake-*"))
    write(fifo, pairs(40))
    dataset = intake(source=str(fifo), name="r", folder=tmp_path / "out")
    assert dataset.train_rows + dataset.eval_rows == 40
    assert not list((tmp_path / "out").glob(".intake-*"))


def test_places_name_file_and_line_and_leaves_what_differs(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    intake(source=str(write(tmp_path / "a.jsonl", pairs(50))), name="a", folder=one)
    intake(source=str(write(tmp_path / "b.jsonl", pairs(48))), name="b", folder=two)
    places = read_places(one / "places.parquet")
    [place] = [
        (i, n)
        for n in ("train", "eval")
        for i, row in read_canonical(one / f"{n}.parquet")
        if row["messages"][0]["content"] == "question 17"
    ]
    assert places[place] == "a.jsonl:18"
    found = identity.difference(two, one)
    assert (len(found.added), len(found.removed), found.unchanged) == (2, 0, 48)
    assert found.sentence() == "grown by 2 rows"
    assert {int(row_id[:2], 16) for row_id in found.added} <= set(identity.unequal_leaves(two, one))
    assert identity.difference(one, one).sentence() == "unchanged"


def test_rows_in_memory_and_progress(tmp_path):
    heard = []
    dataset = intake(source=pairs(30), name="m", folder=tmp_path, progress=lambda *told: heard.append(told))
    assert dataset.train_rows + dataset.eval_rows == 30
    assert "30 rows read" in heard[-1][2]
    source = write(tmp_path / "d/r.jsonl", pairs(5000))
    intake(source=str(source), name="m", folder=tmp_path / "o", progress=lambda *told: heard.append(told))
    assert any("a second" in text for _, _, text in heard)
    assert heard[-1][0] == heard[-1][1] == source.stat().st_size


def test_a_snapshot_of_the_hubs_cache_may_link_into_its_own_blobs(tmp_path):
    write(tmp_path / "repo/blobs/abc", pairs(3))
    (tmp_path / "repo/snapshots/rev").mkdir(parents=True)
    (tmp_path / "repo/snapshots/rev/train.jsonl").symlink_to("../../blobs/abc")
    assert [file.name for file in list_source(tmp_path / "repo/snapshots/rev").files] == ["train.jsonl"]


def test_what_memory_holds_and_files_cannot_is_counted_for_what_it_is(tmp_path):
    user, long, endless = {"role": "user", "content": "q"}, 10**5000, 10**400

    def answer(**more):
        return {"messages": [user, {"role": "assistant", "content": "a", **more}]}

    odd = [
        {"prompt": "x", "completion": float("nan")},
        {"prompt": "y", "completion": "z", "system": float("nan")},
        answer(weight=endless),
        answer(tool_calls=[{"function": {"name": "f", "arguments": {"n": long}}}]),
        answer(tool_calls=[{"function": {"name": "f", "arguments": {"n": float("nan")}}}]),
    ]
    dataset = intake(source=[*pairs(4), *odd], name="m", folder=tmp_path, eval_fraction=0.0, least_eval=0)
    assert {item.reason: item.examples for item in dataset.rejected} == {
        "missing field completion": ("rows:5",),
        "holds a number of over 4300 digits": ("rows:8",),
        "holds a number that JSON has not (NaN or infinity)": ("rows:9",),
    }
    said = [turn["content"] for _, row in read_canonical(tmp_path / "train.parquet") for turn in row["messages"]]
    assert "nan" not in said
    assert dataset.train_rows == 6


def test_what_is_in_memory_and_no_rows_is_said_for_what_it_is(tmp_path):
    class Table(list):
        def to_dict(self):
            raise AssertionError

    for source, said in ((None, "NoneType"), (b"x", "bytes"), ({"train": pairs(3)}, "name one"), (Table(), "to_dict")):
        with pytest.raises(InputError, match=said):
            intake(source=source, name="m", folder=tmp_path)
    with pytest.raises(InputError, match="it can be auto, messages"):
        intake(source=pairs(3), name="m", folder=tmp_path, format="nope")
    turns = np.array([{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}])  # as pandas hands out
    own = {"content": "", "role": "assistant", "tool_calls": np.array([{"function": {"name": "f", "arguments": {}}}])}
    itself = {}
    itself["x"] = itself
    loop = [{**own, "tool_calls": [{"function": {"name": "f", "arguments": itself}}]}]
    rows = [{"messages": turns}, {"prompt": "x", "completion": np.int64(3)}, {"messages": np.array([turns[0], own])}]
    rows += [{"messages": [turns[0], *loop]}]
    dataset = intake(source=rows, name="m", folder=tmp_path, eval_fraction=0.0, least_eval=0)
    assert (dataset.train_rows, [item.reason for item in dataset.rejected]) == (3, ["holds a value that holds itself"])


def test_what_the_system_refuses_is_one_sentence(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "r.jsonl")
    write(tmp_path / "na\udcffme.jsonl", pairs(3))
    for source, said in (
        (f"{tmp_path}/r.jsonl", "pipe"),
        (f"{tmp_path}/{'x' * 5000}.jsonl", "too long"),
        ("", "is empty"),
        (f"{tmp_path}/na\udcffme.jsonl", r"na\\udcffme.jsonl is no UTF-8"),
    ):
        with pytest.raises(InputError, match=said) as caught:
            intake(source=source, name="m", folder=tmp_path / "out")
        assert len(str(caught.value)) < 600

    def refused(path, **_):
        raise PermissionError(13, "Permission denied", str(path))

    write(tmp_path / "d/e/r.jsonl", pairs(3))
    monkeypatch.setattr("lora_select.data.reading.source_files.sha256_file", refused)
    with pytest.raises(InputError, match=r"d/e/r.jsonl cannot be read \(Permission denied\)"):
        intake(source=str(tmp_path / "d"), name="m", folder=tmp_path / "out")
    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(InputError, match=r"/d cannot be read"):
        list_source(tmp_path / "d")


@pytest.mark.parametrize(
    ("pattern", "said"), [("d/*/r.jsonl", "d/shut"), ("d/**/*.jsonl", "d/shut"), ("d/open/*.jsonl", None)]
)
def test_a_folder_that_a_pattern_leads_into_and_that_may_not_be_entered_is_named(tmp_path, monkeypatch, pattern, said):
    for folder in ("open", "shut"):
        write(tmp_path / "d" / folder / "r.jsonl", pairs(3))
    look = os.scandir

    def scandir(path):
        if str(path).endswith("shut"):
            raise PermissionError(13, "Permission denied", str(path))
        return look(path)

    monkeypatch.setattr(os, "scandir", scandir)
    if said is None:
        assert [file.name for file in list_source(f"{tmp_path}/{pattern}").files] == ["r.jsonl"]
        return
    with pytest.raises(InputError, match=rf"{said} cannot be read \(Permission denied\)"):
        list_source(f"{tmp_path}/{pattern}")


def test_places_count_the_lines_before_a_header(tmp_path):
    (tmp_path / "r.csv").write_text("\n\nprompt,completion\na,b\nc\n")
    dataset = intake(source=str(tmp_path / "r.csv"), name="m", folder=tmp_path, eval_fraction=0.0, least_eval=0)
    assert dataset.rejected[0].examples == ("r.csv:5",)
    assert list(read_places(tmp_path / "places.parquet").values()) == ["r.csv:4"]


def test_a_key_that_no_file_can_hold_is_named(tmp_path):
    rows = [*pairs(2), {**pairs(3)[2], "\ud800": 1}]
    dataset = intake(source=rows, name="m", folder=tmp_path, eval_fraction=0.0, least_eval=0)
    assert dataset.notes == (r"`\ud800` in 1 row is not used by format prompt-completion",)


def test_a_file_of_splits_has_one_place_a_row(tmp_path):
    given = pairs(6)
    (tmp_path / "a: b.json").write_text(json.dumps({"train": given[:4], "test": given[4:]}))
    dataset = intake(source=str(tmp_path / "a: b.json"), name="s", folder=tmp_path / "out")
    places = read_places(tmp_path / "out/places.parquet")
    assert sorted(places.values()) == [f"a: b.json:{number}" for number in range(1, 7)]
    assert dataset.sources[0].format == "prompt-completion"
