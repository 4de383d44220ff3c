"""How many microbatches the spectral pass reads."""

import pytest

from lora_select.config import AnalysisConfig, SelectionConfig
from lora_select.pipeline.stages.prepare import FINISH_TOKENS, MOST, TOKEN_COST, microbatches


@pytest.mark.parametrize(
    ("planned_rows", "expected"),
    [(480, 4), (800, 6), (2_400, 26), (16_000, 32)],
    ids=["never below four", "what is left of 5 % after the fixed part", "more for longer ones", "never above 32"],
)
def test_a_default_run_pays_for_its_pass_out_of_five_percent_of_its_training(planned_rows, expected):
    assert microbatches(AnalysisConfig(), SelectionConfig(), planned_rows, 100) == expected


@pytest.mark.parametrize(("planned_rows", "row_tokens"), [(2_000, 80), (8_000, 30), (8_000, 400), (64_000, 1_000)])
def test_the_pass_stays_within_its_share_of_the_compute(planned_rows, row_tokens):
    count = microbatches(AnalysisConfig(), SelectionConfig(), planned_rows, row_tokens)
    cost = FINISH_TOKENS + TOKEN_COST * count * AnalysisConfig().microbatch_size * row_tokens
    assert 0.01 < cost / (planned_rows * row_tokens) <= 0.05 or count == MOST


def test_the_config_of_an_earlier_run_is_read():
    assert AnalysisConfig.model_validate({"pass_budget": 0.1}).budget == 0.1


def test_a_share_may_be_written_with_a_percent_sign():
    assert microbatches(AnalysisConfig(budget="20%"), SelectionConfig(), 200, 100) == 6  # pyright: ignore[reportArgumentType]


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
    assert microbatches(AnalysisConfig(), needs_more, 160, 100) == MOST


def test_a_number_is_taken_as_it_is():
    assert microbatches(AnalysisConfig(microbatches=7), SelectionConfig(race_budget=3), 16_000, 100) == 7


def test_plain_lora_by_name_needs_no_more_than_the_default():
    assert microbatches(AnalysisConfig(), SelectionConfig(variant="lora"), 160, 100) == 4
