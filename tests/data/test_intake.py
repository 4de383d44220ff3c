"""Intake keeps or counts every row, depends on content alone, and refuses what would make the result worthless."""

import csv
import json

import pytest

from lora_select.data.intake import intake, read_canonical
from lora_select.data.reading.source_files import source_digest
from lora_select.errors import InputError


def rows(count, offset=0):
    return [{"prompt": f"question {n}", "completion": f"answer {n}"} for n in range(offset, offset + count)]


def write_jsonl(path, values):
    path.write_text("".join((v if isinstance(v, str) else json.dumps(v)) + "\n" for v in values))
    return path


def take(source, folder, **options):
    folder.mkdir(exist_ok=True)
    return intake(source=str(source), name="mine", folder=folder, **{"eval_fraction": 0.3, **options})


def test_digest_and_bytes_depend_on_content_alone(tmp_path):
    all_rows = rows(40)
    one = write_jsonl(tmp_path / "one.jsonl", all_rows)
    many = tmp_path / "many"
    many.mkdir()
    write_jsonl(many / "z.jsonl", all_rows[30:])
    (many / "a.json").write_text(json.dumps({"rows": all_rows[:10]}))
    with (many / "m.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ["completion", "prompt"])
        writer.writeheader()
        writer.writerows(reversed(all_rows[10:30]))
    first, second = take(one, tmp_path / "f1"), take(many, tmp_path / "f2")
    assert first.digest == second.digest
    assert first.train_file == second.train_file
    assert [s.name for s in second.sources] == ["a.json", "m.csv", "z.jsonl"]
    changed = take(write_jsonl(tmp_path / "one.jsonl", rows(39) + rows(1, 99)), tmp_path / "f3")
    assert changed.digest != first.digest


def test_every_row_is_kept_or_counted_with_its_place(tmp_path):
    source = write_jsonl(
        tmp_path / "d.jsonl",
        [*rows(30), "{broken", "[1]", {"prompt": "x"}, rows(1)[0], {"prompt": "y", "completion": ""}],
    )
    dataset = take(source, tmp_path / "f", max_train_rows=10, max_eval_rows=5)
    counted = {item.reason: item.count for item in dataset.rejected}
    assert counted["broken JSON"] == counted["not a JSON object"] == counted["exact duplicate"] == 1
    assert counted["missing field completion"] == counted["empty answer"] == 1
    assert (dataset.train_rows, dataset.eval_rows) == (10, 5)
    assert sum(counted.values()) + 15 == 35 == dataset.sources[0].rows
    places = {item.reason: item.examples for item in dataset.rejected}
    assert places["broken JSON"] == ("d.jsonl:31",)
    listed = [json.loads(line) for line in (tmp_path / "f" / "rejected.jsonl").read_text().splitlines()]
    assert len(listed) == sum(counted.values())
    assert {"file": "d.jsonl", "line": 34, "reason": "exact duplicate"} in listed


def test_one_prompt_never_falls_into_both_splits(tmp_path):
    values = [{"prompt": f"q{n % 20}", "completion": f"a{n}"} for n in range(100)]
    dataset = take(write_jsonl(tmp_path / "d.jsonl", values), tmp_path / "f")
    prompts = [
        {row["messages"][0]["content"] for _, row in read_canonical(tmp_path / "f" / file.path)}
        for file in (dataset.train_file, dataset.eval_file)
    ]
    assert not prompts[0] & prompts[1]
    assert dataset.train_rows + dataset.eval_rows == 100


def test_evaluation_rows_inside_training_rows_are_refused(tmp_path):
    train = write_jsonl(tmp_path / "train.jsonl", rows(10))
    held_out = write_jsonl(tmp_path / "eval.jsonl", rows(4, 8))
    with pytest.raises(
        InputError, match=r"2 of 4 evaluation rows are also training rows.*eval.jsonl:\d.*train.jsonl:\d"
    ):
        take(train, tmp_path / "f", eval_source=str(held_out))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("d.jsonl", "", "is empty"),
        ("d.jsonl", "{oops\n", r"d.jsonl:1 \(broken JSON\)"),
        ("d.json", '[{"a": 1},\n oops]', "d.json:2 is broken JSON"),
        ("d.json", '"text"', "must hold a list of rows"),
        ("d.jsonl", '{"x": 1}\n', "no known format"),
        ("d.jsonl", '{"prompt": "a", "completion": "b"}\n', "leaves . training and . evaluation rows"),
        ("d.xlsx", "", "is no data file"),
        ("d.parquet", "nonsense", "no readable Parquet"),
    ],
)
def test_bad_sources_say_place_and_way_out(tmp_path, name, content, words):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=words):
        take(tmp_path / name, tmp_path / "f")


def test_missing_sources(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        take(tmp_path / "none.jsonl", tmp_path / "f")
    with pytest.raises(InputError, match="holds no data file"):
        take(tmp_path / "f", tmp_path / "f")
    with pytest.raises(InputError, match="samples: tweet-entities"):
        take("sample:nothing", tmp_path / "f")


def test_samples_hold_real_rows(tmp_path):
    tweets = take("sample:tweet-entities", tmp_path / "a")
    assert tweets.train_rows + tweets.eval_rows == 886
    calls = take("sample:tool-calls", tmp_path / "b")
    assert calls.train_rows + calls.eval_rows == 400
    _, row = next(read_canonical(tmp_path / "b" / "train.parquet"))
    name = row["messages"][-1]["tool_calls"][0]["function"]["name"]
    assert row["tools"][0]["function"]["name"] == name


def test_a_source_is_its_bytes_and_what_its_names_decide(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for folder, names in ((one, ("a", "b")), (two, ("y", "x"))):
        folder.mkdir()
        for name, values in zip(names, (rows(3), rows(3, 9)), strict=True):
            write_jsonl(folder / f"{name}.jsonl", values)
    first = source_digest(str(one))
    assert source_digest(str(two)) == first
    (one / "LICENSE.txt").write_text("no rows")
    assert source_digest(str(one)) == first
    (one / "a.jsonl").rename(one / "test.jsonl")
    held_out = source_digest(str(one))
    (one / "test.jsonl").rename(one / "test.csv")
    changed = write_jsonl(two / "x.jsonl", rows(4, 9))
    assert len({first, held_out, source_digest(str(one)), source_digest(str(two)), source_digest(str(changed))}) == 5


def test_no_source_is_not_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "task.yaml").write_text("a: 1")
    task = source_digest(f"{tmp_path}/*.yaml")
    (tmp_path / "task.yaml").write_text("a: 2")
    assert source_digest(f"{tmp_path}/*.yaml") == source_digest("*.yaml") != task
    before = source_digest("")
    (tmp_path / "mlflow.db").write_text("changes with every run")
    assert source_digest("") == before
