"""What a learning rate costs on planted outcomes: from its own run, between swept ones, and below the lowest."""

import pytest
from oracle_tables import bowl, empty, outcome, sweep

from benchmarks.selection.case import best_run
from benchmarks.selection.costs import AT_LEAST, READ_OFF, RUN, cost, rows
from benchmarks.selection.sweep.candidates import REFERENCE
from benchmarks.selection.sweep.table import Run

LORA_8 = "lora-all-linear-r8"


@pytest.fixture
def table(tmp_path):
    made = empty(tmp_path)
    sweep(made, REFERENCE, bowl(1e-3))  # seeds 0, 1, 2 at the best: mean 1.01, SD 0.01; the base model has 3
    return made


def test_what_is_run_between_the_rates_of_the_grid_moves_no_yardstick(table):
    table.add(outcome(Run(REFERENCE, 1.9e-3, 0), 0.5))
    assert best_run(table, REFERENCE) == Run(REFERENCE, 1e-3, 0)
    found = cost(table, Run(REFERENCE, 1.9e-3, 0))
    assert (found.nats, found.seed_sds, found.how) == (pytest.approx(-0.51), pytest.approx(-51), RUN)
    assert found.share == pytest.approx(-0.51 / 1.99, abs=1e-4)


def test_a_rate_that_was_not_run_is_read_off_between_its_neighbours(table):
    losses = [cost(table, Run(key, 6e-4, 0)) for key in (REFERENCE, LORA_8)]
    assert [found.how for found in losses] == [READ_OFF, READ_OFF]  # r 16 stands for r 8
    assert 0 < losses[0].nats < cost(table, Run(REFERENCE, 3e-4, 0)).nats


def test_below_the_lowest_swept_rate_there_is_a_bound_which_no_median_counts(table):
    low = cost(table, Run(REFERENCE, 1e-5, 0))
    lowest = cost(table, Run(REFERENCE, min(table.rates(REFERENCE)), 0))
    assert (low.how, lowest.how, low.nats) == (AT_LEAST, RUN, lowest.nats)
    [*_, line] = rows([{"low": low}])
    assert line == "| low | 0 | 0 |  |  |  |"
