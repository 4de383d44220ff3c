"""The oracle's bookkeeping on planted outcomes: it brackets, resumes, drops nothing, and judges by rows that no strategy saw."""

import dataclasses
import math

import pytest
import torch
from oracle_tables import EVA, SETTING, bowl, empty, outcome, sweep

from benchmarks.selection.case import Case
from benchmarks.selection.judging import Regret, fit, forgetting, hindsight, loss, regrets, seed_sd
from benchmarks.selection.reach import held_share
from benchmarks.selection.strategies import FOUR, TUNED, by_rows
from benchmarks.selection.sweep.candidates import REFERENCE
from benchmarks.selection.sweep.schedule import GRID, RUNG, next_run
from benchmarks.selection.sweep.subject import Subject, check_rows, rows_digest
from benchmarks.selection.sweep.table import Base, Run, Setting, Table, tables
from benchmarks.selection.sweep.tasks import Rows
from lora_select.data.labels.tokens import TokenRow


@pytest.fixture
def table(tmp_path) -> Table:
    return empty(tmp_path)


@pytest.mark.parametrize("best", [1e-4, 1e-3, 1e-2])
def test_the_optimum_is_bracketed_wherever_it_is(table, best):
    sweep(table, REFERENCE, bowl(best))
    rates = [rate for rate in table.rates(REFERENCE) if rate in GRID]
    place = GRID.index(best)
    assert {GRID[place - 1], best, GRID[place + 1]} <= set(rates)
    assert {run.seed for run in table.outcomes if run.rate == best and run.share == 1.0} == {0, 1, 2}
    assert set(table.rates(REFERENCE, share=RUNG)) == set(rates)


def test_a_candidate_starts_where_equal_displacement_predicts(table):
    sweep(table, REFERENCE, bowl(1e-3))
    first, *_ = sweep(table, EVA, bowl(1e-4), ratio=0.1)
    assert first == Run(EVA, 1e-4, 0)


def test_a_diverged_run_counts_and_the_search_goes_on_below_it(table):
    sweep(table, REFERENCE, lambda rate: math.inf if rate > 1e-4 else 1.0 + 1e-5 / rate)
    assert math.isinf(table.loss(Run(REFERENCE, 1e-3, 0)))
    assert min(table.rates(REFERENCE).items(), key=lambda item: item[1])[0] == 1e-4


def test_a_sweep_that_was_killed_in_a_write_resumes_with_the_run_it_lost(table, tmp_path):
    done = sweep(table, REFERENCE, bowl(1e-3))
    whole = table.file.read_bytes()
    table.file.write_bytes(whole[:-30])
    again = Table(SETTING, tmp_path)
    assert next_run(again, REFERENCE, 1.0, repeats=True) == done[-1]
    again.add(outcome(done[-1], 1.0))
    [read] = tables(tmp_path)
    assert set(read.outcomes) == set(done)


def test_results_of_another_setting_are_refused(table, tmp_path):
    with pytest.raises(AssertionError, match="was made with"):
        Table(Setting("task", "model", 64, 48, 8), tmp_path)


def test_regret_is_measured_on_rows_that_no_strategy_saw(table):
    """The race sees the even rows, on which EVA looks best; on the odd ones it is worse."""
    sweep(table, REFERENCE, bowl(1e-3))
    while run := next_run(table, EVA, 1.0, repeats=False):
        table.add(outcome(run, 0.5 * bowl(1e-3)(run.rate), odd=2.0))
    case = Case(table, {EVA: 0.9}, {}, {}, fit([table]))
    assert regrets(case, FOUR) is None  # one rival is no shortlist
    for other in ("lora-mlp-only-r16", "pissa-all-linear-r16"):
        sweep(table, other, lambda rate: 1.5 * bowl(1e-3)(rate), repeats=False)
    case = Case(table, {EVA: 0.9}, {}, {}, fit([table]))
    found = regrets(case, FOUR)
    assert isinstance(found, Regret)
    assert found.nats == pytest.approx(1.0, abs=0.05)
    assert found.sds == pytest.approx(found.nats / seed_sd(table))
    assert regrets(case, TUNED).nats == pytest.approx(0.0, abs=1e-9)
    assert loss(table, Run(EVA, 1e-3, 0)) == 2.0


def test_what_was_not_run_is_not_scored(table):
    sweep(table, REFERENCE, bowl(1e-3), repeats=False)
    assert regrets(Case(table, {}, {}, {}, fit([])), "LoRA r 8, 1e-4 (trainers' default)") is None


def test_the_best_in_hindsight_is_the_one_with_the_lowest_median_regret_over_three_settings(tmp_path):
    made = []
    for task in "abc":
        table = empty(tmp_path, dataclasses.replace(SETTING, task=task))
        sweep(table, REFERENCE, bowl(1e-3))
        sweep(table, EVA, lambda rate: 0.8 * bowl(1e-3)(rate), repeats=False)
        made.append(Case(table, {}, {}, {}, dataclasses.replace(fit([table]), rate=1e-3)))
    key, found = hindsight(made)
    assert (key, len(found)) == (EVA, 3)
    assert hindsight(made[:2]) == ("", [])


@pytest.mark.parametrize(("rows", "key"), [(192, "lora-all-linear-r8"), (1000, REFERENCE)])
def test_rank_by_row_count(tmp_path, rows, key):
    table = empty(tmp_path, dataclasses.replace(SETTING, rows=rows))
    for candidate in (REFERENCE, "lora-all-linear-r8"):
        sweep(table, candidate, bowl(1e-3))
    [choice] = by_rows(Case(table, {}, {}, {}, dataclasses.replace(fit([table]), rate=1e-3)))
    assert choice.run == Run(key, 1e-3, 0)


def test_an_adapter_reaches_the_largest_directions_of_its_own_layers_alone():
    energies = {"a": torch.tensor([4.0, 2.0]), "b": torch.tensor([3.0, 1.0])}
    assert held_share(energies, ["a", "b"], 1) == pytest.approx(0.7)
    assert held_share(energies, ["b"], 1) == pytest.approx(0.3)
    assert held_share(energies, ["a", "b"], 8) == pytest.approx(1.0)


def test_a_diverged_choice_has_a_regret_and_no_forgetting(table):
    sweep(table, REFERENCE, lambda rate: math.inf if rate > 1e-3 else bowl(1e-3)(rate))
    case = Case(table, {}, {}, {}, dataclasses.replace(fit([table]), rate=3e-3))
    found = regrets(case, "LoRA, predicted rate (the product's default)")
    assert math.isinf(found.nats)
    assert found.forgetting is None


def test_constants_of_no_setting_are_the_public_anchor():
    assert (fit([]).rate, fit([]).settings) == (3e-4, 0)


def test_runs_on_other_rows_are_refused():
    def subject(*rows):
        made = tuple(TokenRow(str(ids), ids, (False, *[True] * (len(ids) - 1))) for ids in rows)
        return Subject(None, None, 0, Rows(made[1:], made[:1], 0), (), packing=True)  # pyright: ignore[reportArgumentType]

    rows, old = subject((1, 2, 3), (1, 2)), Base((2,), (1.0,), 1.0, 2, 0, {}, "")
    assert check_rows(old, rows, "a-setting", lambda: dataclasses.replace(old, held_out=(1.001,))) is None
    assert check_rows(old, rows, "a-setting", lambda: dataclasses.replace(old, reference=1.1)) == 1.1
    for other in ({"held_out": (1.1,)}, {"labels": (3,)}, {"train_tokens": 3}):
        with pytest.raises(ValueError, match="a-setting was begun on other rows"):
            check_rows(old, rows, "a-setting", lambda changed=other: dataclasses.replace(old, **changed))
    new = dataclasses.replace(old, rows_digest=rows_digest(rows))
    check_rows(new, rows, "a-setting", pytest.fail)
    with pytest.raises(ValueError, match="Debian's package lists change"):
        check_rows(new, subject((1, 2, 3), (1, 4)), "a-setting", pytest.fail)


def test_a_reference_on_other_general_text_keeps_its_rise(table, tmp_path):
    [first, *_] = sweep(table, REFERENCE, bowl(1e-3))
    run = dataclasses.replace(first, seed=7)
    table.add(dataclasses.replace(outcome(run, 1.0), reference=9.5, base_reference=9.0))
    assert forgetting(Table(SETTING, tmp_path), run) == pytest.approx(0.5)
