"""How many microbatches the spectral pass reads."""

import pytest

from lora_select.config import AnalysisConfig, SelectionConfig
from lora_select.pipeline.stages.prepare import MOST, microbatches


@pytest.mark.parametrize(
    ("planned_rows", "expected"),
    [(16, 4), (160, 4), (456, 11), (16_000, 32)],
    ids=["never below four", "four are more than the budget", "5 % of the rows in pairs", "never above 32"],
)
def test_a_default_run_reads_five_percent_of_its_training(planned_rows, expected):
    assert microbatches(AnalysisConfig(), SelectionConfig(), planned_rows) == expected


def test_a_share_may_be_written_with_a_percent_sign():
    assert microbatches(AnalysisConfig(pass_budget="20%"), SelectionConfig(), 200) == 20  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "needs_more",
    [
        SelectionConfig(race_budget=3),
        SelectionConfig(claims={"tangent_share_predicts_short_runs": True}),
        SelectionConfig(variant="eva"),
    ],
    ids=["race", "claim", "variant"],
)
def test_what_reads_more_than_a_displacement_gets_the_whole_pass(needs_more):
    assert microbatches(AnalysisConfig(), needs_more, 160) == MOST


def test_a_number_is_taken_as_it_is():
    assert microbatches(AnalysisConfig(microbatches=7), SelectionConfig(race_budget=3), 16_000) == 7


def test_plain_lora_by_name_needs_no_more_than_the_default():
    assert microbatches(AnalysisConfig(), SelectionConfig(variant="lora"), 160) == 4
