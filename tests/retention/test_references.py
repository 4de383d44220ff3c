"""Reference sets: parts without a common row, another kind that judges, and no row of the task among them."""

import json

import pytest
from byte_tokenizer import byte_tokenizer

from lora_select import models
from lora_select.data.general_text import reference_rows
from lora_select.data.labels.tokens import TokenRow
from lora_select.errors import InputError
from lora_select.retention.references import (
    LEAST_ROWS,
    ReferenceSet,
    Sizes,
    gather,
    refuse_leaks,
    refuse_unusable,
    replayed,
)

SIZES = Sizes(give_tokens=1024, judging=6)


@pytest.fixture(scope="module")
def base(tiny_model_folder):
    return models.resolve(str(tiny_model_folder))


def sets(base, giving, judging, cache, *, model=None):
    def none():
        raise AssertionError("the model is not needed")

    return gather(giving, judging, base, byte_tokenizer(), sizes=SIZES, seed=0, model=model or none, cache=cache)


def texts(rows, tokenizer):
    return [tokenizer.decode(row.input_ids) for row in rows]


def test_parts_of_a_text_have_no_token_run_in_common_nor_with_what_the_evaluation_judges(base, tmp_path):
    tokenizer = byte_tokenizer()
    [prose, code] = sets(base, ["prose"], ["code"], tmp_path)
    assert (len(prose.give), len(code.give), len(prose.judging), len(code.judging)) == (8, 0, 6, 6)
    parts = [prose.give, prose.deciding, prose.judging, reference_rows(tokenizer, 4096)]
    for index, part in enumerate(parts[:3]):
        for other in parts[index + 1 :] if index != 2 else []:
            runs = {row.input_ids[start : start + 40] for row in other for start in range(len(row.input_ids) - 39)}
            assert not any(
                row.input_ids[start : start + 40] in runs for row in part for start in range(len(row.input_ids) - 39)
            )


@pytest.mark.parametrize("count", [3, 90, 250])
def test_what_training_replays_neither_decides_nor_judges(base, tmp_path, count):
    tokenizer = byte_tokenizer()
    rows, rows_of, distinct = replayed(
        ["prose"], count, base, tokenizer, seed=0, longest=100, model=lambda: None, cache=tmp_path
    )
    assert (len(rows), rows_of) == (count, {"prose": count})
    assert distinct == count == len({row.input_ids for row in rows})
    assert max(len(row.input_ids) for row in rows) <= 100
    assert all(len(row.input_ids) == len(row.label_mask) and all(row.label_mask[1:]) for row in rows)
    read = [part for one in sets(base, ["prose"], ["code"], tmp_path) for part in (one.deciding, one.judging)]
    runs = {row.input_ids[at : at + 80] for part in read for row in part for at in range(len(row.input_ids) - 79)}
    runs |= {
        row.input_ids[at : at + 80] for row in reference_rows(tokenizer, 4096) for at in range(len(row.input_ids) - 79)
    }
    assert not any(row.input_ids[at : at + 80] in runs for row in rows for at in range(len(row.input_ids) - 79))


def test_sets_take_turns_in_what_is_replayed(base, tmp_path):
    _, rows_of, distinct = replayed(
        ["prose", "code"], 31, base, byte_tokenizer(), seed=0, longest=100, model=lambda: None, cache=tmp_path
    )
    assert (sorted(rows_of.values()), distinct) == ([15, 16], 31)


def test_replayed_text_comes_again_where_there_is_too_little(base, tmp_path):
    rows, _, distinct = replayed(
        ["prose"], 600, base, byte_tokenizer(), seed=0, longest=64, model=lambda: None, cache=tmp_path
    )
    assert (len(rows), distinct, len({row.input_ids for row in rows})) == (600, 256, 256)
    assert len({row.row_id for row in rows}) == 600


def test_what_gives_nothing_must_be_among_the_judges(base, tmp_path):
    with pytest.raises(InputError, match="only judges"):
        sets(base, ["prose"], [], tmp_path)
    with pytest.raises(InputError, match="prose is named twice"):
        sets(base, ["prose"], ["prose"], tmp_path)
    with pytest.raises(InputError, match="references` is empty"):
        sets(base, [], ["code"], tmp_path)


def test_the_models_own_text_is_sampled_once_and_then_read(base, tmp_path, tiny_model_folder):
    loaded = models.load_model(str(tiny_model_folder))
    [first, _] = sets(base, ["self"], ["code"], tmp_path, model=lambda: loaded)
    [again, _] = sets(base, ["self"], ["code"], tmp_path)
    assert again.digest == first.digest
    kinds = {row.row_id.rsplit("-", 1)[0] for row in (*first.give, *first.deciding, *first.judging)}
    assert kinds == {"self-text", "self-chat"}
    assert all(any(row.label_mask) and len(row.input_ids) > 1 for row in first.give)
    assert not {row.input_ids for row in first.give} & {row.input_ids for row in (*first.deciding, *first.judging)}


def test_rows_of_a_user_in_any_format_are_split_by_prompt(base, tmp_path):
    rows = [{"instruction": f"question {n}", "output": f"answer {n} " * 9} for n in range(60)]
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    [mine, _] = sets(base, [str(file)], ["code"], tmp_path)
    ids = [{row.row_id for row in part} for part in (mine.give, mine.deciding, mine.judging)]
    assert all(ids)
    assert not ids[0] & ids[1]
    assert not ids[0] & ids[2]
    assert not ids[1] & ids[2]
    assert sum(len(row.input_ids) for row in mine.give) >= SIZES.give_tokens
    with pytest.raises(InputError, match="reference .*nothing"):
        sets(base, [str(tmp_path / "nothing.jsonl")], ["code"], tmp_path)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows[:4]))
    with pytest.raises(InputError, match="usable rows"):
        sets(base, [str(file)], ["code"], tmp_path)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows[: LEAST_ROWS - 1]))
    with pytest.raises(InputError, match="has 23 usable rows; 24 are needed"):
        sets(base, [str(file)], ["code"], tmp_path)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows[:LEAST_ROWS]))
    assert len(sets(base, [str(file)], ["code"], tmp_path)) == 2


def test_sets_are_refused_before_a_training_without_the_model(base, tmp_path):
    rows = [{"instruction": f"question {n}", "output": f"answer {n} " * 9} for n in range(60)]
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    [mine, _] = sets(base, [str(file)], ["code"], tmp_path)

    def check(giving, task=()):
        refuse_unusable(giving, ["code"], base, byte_tokenizer(), task, sizes=SIZES, seed=0)

    check(["self", str(file)])
    with pytest.raises(InputError, match="nothing.jsonl"):
        check([str(tmp_path / "nothing.jsonl")])
    with pytest.raises(InputError, match="holds 1 rows of the task"):
        check([str(file)], mine.judging[:1])


def row(name, ids):
    return TokenRow(name, tuple(ids), (False, *[True] * (len(ids) - 1)))


def a_set(*rows):
    return ReferenceSet("mine", "user", tuple(rows), (), ())


def test_a_reference_that_holds_task_rows_is_refused_by_name_and_a_common_template_is_not_content():
    template = list(range(40))
    task = [row(f"t{n}", [*template, *range(100 + 50 * n, 130 + 50 * n)]) for n in range(30)]
    clean = row("clean", [*template, *range(5000, 5008)])
    refuse_leaks([a_set(clean)], task)
    for leaking in (row("t3", [9, 9, 9]), row("copy", task[4].input_ids), row("near", [7, *range(300, 330), 8])):
        with pytest.raises(InputError, match=f"reference mine holds 1 rows .*{leaking.row_id}"):
            refuse_leaks([a_set(clean, leaking)], task)
