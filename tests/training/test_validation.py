"""Rows kept from training choose the checkpoint: the same ones on every rank, ZeRO stage and after a kill."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file
from training_jobs import rows

from lora_select import records
from lora_select.data.labels.tokens import TokenRow
from lora_select.records import Adapter, Validation
from lora_select.training.job import BEST, METRICS, RESULT, VALIDATION
from lora_select.training.reload_check import examine
from lora_select.training.supervisor import metrics_file
from lora_select.training.validation import Point, best, is_due, is_over, kept_rows, split, steps_between, worse
from lora_select.training.worker import checkpoints


@pytest.fixture(scope="module")
def watched(runs):
    """Folders of two ranks: whole at ZeRO-0 and 3, and one that was killed after step 10 and taken up."""
    return {0: runs["watched"], 3: runs["watched at ZeRO-3"], "resumed": runs["watched and killed"]}


@pytest.mark.parametrize("which", [0, 3])
def test_training_stops_and_the_best_look_is_kept(watched, which, tiny_model_folder):
    adapter = records.read(Adapter, watched[which] / RESULT)
    seen = adapter.validation
    assert seen is not None
    assert seen.rows == 8
    assert seen.stopped_early
    assert adapter.steps == seen.steps[-1] < 60
    assert seen.steps[0] == 0
    assert seen.chosen_step == seen.steps[seen.losses.index(min(seen.losses))] < adapter.steps
    steps = metrics_file.read_metrics(watched[which])
    assert {s["step"]: round(s["validation_loss"], 6) for s in steps if s["validation_loss"] is not None} == dict(
        zip(seen.steps[1:], seen.losses[1:], strict=True)
    )
    saved = load_file(watched[which] / BEST / checkpoints.name(seen.chosen_step) / checkpoints.PARAMETERS)
    folder = load_file(watched[which] / "adapter" / "adapter_model.safetensors")
    for name, tensor in folder.items():
        torch.testing.assert_close(tensor, saved[name.replace(".weight", ".default.weight")], rtol=0, atol=0)
    proof = examine(str(tiny_model_folder), watched[which], "fp32")
    assert proof.passed, proof.faults


def test_a_split_model_says_the_same(watched):
    one, other = (records.read(Adapter, watched[which] / RESULT).validation for which in (0, 3))
    assert one.steps == other.steps
    torch.testing.assert_close(one.losses, other.losses, rtol=1e-4, atol=1e-4)


def test_a_killed_run_looks_again_at_what_it_had_seen(watched):
    whole, resumed = (records.read(Adapter, watched[which] / RESULT) for which in (0, "resumed"))
    assert resumed.resumed_from == (10,)
    assert resumed.validation == whole.validation
    assert resumed.digest == whole.digest
    lines = [json.loads(line) for line in (watched["resumed"] / VALIDATION).read_text().splitlines()]
    assert [line["step"] for line in lines] == list(whole.validation.steps)
    assert (watched["resumed"] / METRICS).is_file()


def test_kept_rows_are_not_trained_on_and_are_the_same_again():
    every = rows(100)
    train, kept = split(every, 8, 0)
    assert (train, kept) == split(every, 8, 0)
    assert len(kept) == 8
    assert {row.row_id for row in train} | {row.row_id for row in kept} == {row.row_id for row in every}
    assert kept != split(every, 8, 1)[1]
    assert split(every, 0, 0) == (every, [])


def test_rows_of_one_prompt_stay_on_one_side():
    prompts = [tuple(range(4 + p, 24 + p)) for p in range(30)]
    every = [
        TokenRow(f"{p}-{turn}", (*prompts[p], 200 + turn), (False,) * 20 + (True,))
        for p in range(30)
        for turn in (0, 1)
    ]
    train, kept = split(every, 8, 0)
    assert len(kept) == 8
    assert not {row.input_ids[:20] for row in train} & {row.input_ids[:20] for row in kept}


def test_the_texts_of_one_row_stay_on_one_side():
    every = [
        TokenRow(str(n), (*range(4 + n, 24 + n), *range(turn), 99), (False,) * (20 + turn) + (True,))
        for n in range(40)
        for turn in (0, 3)
    ]
    train, kept = split(every, 8, 0)
    assert len(kept) == 8
    assert not {row.row_id for row in train} & {row.row_id for row in kept}


def test_one_prompt_for_all_is_split_by_row():
    every = [TokenRow(str(n), (*range(4, 24), n), (False,) * 20 + (True,)) for n in range(40)]
    train, kept = split(every, 8, 0)
    assert (len(train), len(kept)) == (32, 8)


def test_how_many_rows_and_how_often():
    assert kept_rows(23, 0.05) == 0
    assert kept_rows(24, 0.05) == 8
    assert [kept_rows(count, 0.05, labels) for count, labels in ((24, 1.0), (100, 1.0), (1000, 1.0), (100, 16.0))] == [
        8,
        25,
        50,
        8,
    ]
    assert kept_rows(10**6, 0.05) == 64
    assert kept_rows(1000, 0.0) == 0
    for kept, tokens, steps in ((1_900, 38_000, 30), (640, 10**6, 500), (64, 10**4, 7)):
        every = steps_between(kept, tokens, steps)
        looks = steps // every
        assert every == steps or 0.5 * looks * kept <= 0.03 * tokens


def test_looks_come_before_the_first_step_early_and_once_an_epoch():
    every = steps_between(8 * 20, 400 * 20, 50, epochs=10)
    looks = [done for done in range(51) if is_due(done, every, 50, epochs=10)]
    assert looks == [0, 1, 2, *range(5, 51, 5)]
    assert [done for done in range(31) if is_due(done, 20, 30)] == [0, 20, 30]
    for kept, count in ((24, 480), (64, 3_000), (64, 100_000)):  # one epoch of 16 rows a step
        steps = -(-(count - kept) // 16)
        every = steps_between(kept, count - kept, steps)
        looks = [done for done in range(steps + 1) if is_due(done, every, steps)]
        assert looks == [0, steps] or 0.5 * kept * len(looks) <= 0.03 * (count - kept)


def test_early_looks_end_nothing():
    points = [
        Point(step, tuple(float(loss) + 0.01 * row for row in range(8)))
        for step, loss in ((0, 1), (1, 2), (2, 3), (4, 4))
    ]
    assert not is_over(points, 3, every=4)
    assert is_over([*points, *(Point(step, points[-1].losses) for step in (8, 12))], 3, every=4)


def test_the_base_model_may_be_the_best():
    seen = Validation(8, (0, 4, 8), (1.0, 1.1, 1.05), 0.1, 8, False)
    assert seen.base_was_best
    assert not dataclasses.replace(seen, losses=(1.0, 0.9, 1.05)).base_was_best
    assert not dataclasses.replace(seen, steps=(4, 8, 12)).base_was_best


def test_patience_wants_looks_that_are_worse_beyond_noise():
    base = [2.0, 3.0, 2.5, 3.5]
    points = [Point(1, tuple(base)), Point(2, tuple(x - 1 for x in base)), Point(3, tuple(x - 0.9 for x in base))]
    assert best(points) == points[1]
    assert worse(points[2], points[1])
    assert not is_over(points, 2)
    assert is_over(points, 1)
    noisy = Point(3, (1.9, 1.1, 2.4, 1.8))
    assert not worse(noisy, points[1])
    assert not is_over([*points[:2], noisy], 1)
