"""The five claims, on planted sweeps in which they hold, fail, or cannot be told."""

import dataclasses

import pytest
from oracle_tables import EVA, SETTING, bowl, empty, outcome, sweep

from benchmarks.selection import acceptance
from benchmarks.selection.case import Case
from benchmarks.selection.judging import cases, fit
from benchmarks.selection.predictors import RUNG_FINAL, SHARE_FINAL, correlations
from benchmarks.selection.strategies import DEFAULT, FOUR, TWO, TWO_RANDOM
from benchmarks.selection.sweep.candidates import REFERENCE
from benchmarks.selection.sweep.table import Run, Table
from benchmarks.selection.sweep.tasks import CONTROLS, TASKS, answers, shuffled

LEVELS = {"a": 1.0, "b": 1.1, "c": 0.9, "d": 1.05}
SHARES = {REFERENCE: 0.1, EVA: 0.9}
RIVALS = ("lora-mlp-only-r16", "pissa-all-linear-r16", "dora-all-linear-r16")


def swept(folder, task: str, *, level=1.0, eva=1.0, rivals=1.5) -> Table:
    """LoRA's best rate is 1e-3 at loss `level`; EVA's loss is `eva` times that, the others' `rivals` times."""
    made = empty(folder, dataclasses.replace(SETTING, task=task))
    for key, factor in ((REFERENCE, level), (EVA, eva * level), *((key, rivals * level) for key in RIVALS)):
        sweep(made, key, lambda rate, factor=factor: factor * bowl(1e-3)(rate), repeats=key == REFERENCE)
    return made


def four(folder, **losses) -> list[Case]:
    """One setting of each of four tasks, each with constants of the other three."""
    made = cases([swept(folder, task, level=level, **losses) for task, level in LEVELS.items()])
    return [dataclasses.replace(case, shares=SHARES) for case in made]


def test_all_hold_where_lora_is_best_and_the_others_are_far_behind(tmp_path):
    everything = four(tmp_path)
    assert acceptance.never_far_behind(everything, TWO).kept
    assert acceptance.covers(everything, DEFAULT).kept
    assert acceptance.abstains([Case(swept(tmp_path, "a-shuffled"), SHARES, {}, {}, fit([]))], TWO).kept


def test_a_choice_that_only_looked_better_on_the_rows_of_the_race_fails_the_first_claim(tmp_path):
    everything = four(tmp_path)
    table = everything[0].table
    for run in list(table.outcomes):
        if run.candidate == EVA:
            table.add(outcome(run, 0.5 * bowl(1e-3)(run.rate), odd=2.0))
    claim = acceptance.never_far_behind(everything, TWO)
    assert claim.kept is False
    assert "above 1 SD on 1 of 4" in claim.numbers
    assert table.setting.name in claim.numbers


def test_a_variant_that_wins_on_shuffled_labels_fails_the_control(tmp_path):
    claim = acceptance.abstains([Case(swept(tmp_path, "a-shuffled", eva=0.5), SHARES, {}, {}, fit([]))], TWO)
    assert claim.kept is False
    assert EVA in claim.numbers


def test_a_gain_far_off_the_others_is_not_covered(tmp_path):
    everything = four(tmp_path)
    table = everything[0].table
    for seed in range(3):
        table.add(outcome(Run(REFERENCE, everything[0].rate(REFERENCE), seed), 2.9))
    claim = acceptance.covers(everything, DEFAULT)
    assert claim.kept is False
    assert claim.numbers.startswith("3 of 4")


def test_a_gain_that_another_seed_does_not_repeat_is_not_covered(tmp_path):
    """The race's probe is the run of the first seed; the rows agree, so its interval is as wide as seeds are apart."""
    everything = four(tmp_path)
    assert acceptance.covers(everything, FOUR).kept
    table = everything[0].table
    table.add(outcome(Run(REFERENCE, 1e-3, 2), 2.0))
    claim = acceptance.covers(everything, FOUR)
    assert claim.kept is False
    assert claim.numbers.startswith("3 of 4")


@pytest.mark.parametrize(("level", "kept"), [(3.0001, True), (3.9, None)])
def test_forgetting_is_claimed_only_where_a_tie_spares(tmp_path, level, kept):
    """EVA ties on loss; at `level` it forgets far less than LoRA's 3.001, or more."""
    everything = four(tmp_path, eva=1.0)
    for case in everything:
        for run, made in list(case.table.outcomes.items()):
            value = level if run.candidate == EVA else 3.5
            case.table.add(dataclasses.replace(made, reference=value))
    assert acceptance.spares(everything, TWO).kept is kept


def test_nothing_is_claimed_of_an_empty_sweep():
    assert {claim.kept for claim in acceptance.claims([], [], TWO, TWO_RANDOM)} == {None}


def test_a_rung_that_orders_as_the_end_does_correlates_fully(tmp_path):
    [case, *_] = four(tmp_path)
    for place, key in enumerate(case.candidates):
        for run, made in list(case.table.outcomes.items()):
            if run.candidate == key:
                case.table.add(outcome(made.run, 1.0 + place / 10 + abs(run.rate - 1e-3)))
    shares = {key: place / 10 for place, key in enumerate(case.candidates)}  # the more, the worse
    found = correlations(dataclasses.replace(case, shares=shares))
    assert found[RUNG_FINAL] == pytest.approx(1.0)
    assert found[SHARE_FINAL] == pytest.approx(-1.0)


def test_controls_hold_the_same_prompts_and_answers_in_another_order():
    real, control = answers(TASKS["entities"]), answers(shuffled(TASKS["entities"]))
    assert set(control) == set(real)
    assert sum(control[prompt] != real[prompt] for prompt in real) > len(real) / 2
    assert all(name.endswith("-shuffled") for name in CONTROLS)
