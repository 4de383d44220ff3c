import dataclasses

import planted
import pytest

from lora_select.selection.calibration import reference_rate, shipped
from lora_select.selection.candidates import enumerate_candidates
from lora_select.selection.explanation import answer
from lora_select.selection.learning_rate import displacement_ratio, learning_rate
from lora_select.selection.rule import select
from lora_select.selection.shown import UNSHOWN

PROPORTIONAL = dataclasses.replace(shipped(), displacement_power=1.0)


def candidate(key: str, r=None, **options):
    return next(c for c in enumerate_candidates(planted.spectra(**options), r) if c.key == key)


def test_rate_falls_by_the_displacement():
    pissa = candidate("pissa-all-linear-r16", displacements={"pissa": 10.0})
    assert displacement_ratio(pissa) == pytest.approx(10.0)
    assert learning_rate(pissa, 780, PROPORTIONAL) == 3e-5


def test_lora_keeps_the_reference_rate_at_every_rank_and_target():
    for r in (8, 16, 32):
        for targets in ("all-linear", "mlp-only"):
            assert (
                learning_rate(candidate(f"lora-{targets}-r{r}", displacements={"lora": 0.7}), 780, PROPORTIONAL) == 3e-4
            )


@pytest.mark.parametrize(("displacement", "rate"), [(1e6, 1e-5), (1e-6, 6e-3), (0.0, 3e-4)])
def test_transfer_is_bounded_and_survives_a_dead_layer(displacement, rate):
    assert learning_rate(
        candidate("eva-all-linear-r8", displacements={"eva": displacement}), 780, PROPORTIONAL
    ) == pytest.approx(rate)


def test_an_unmeasured_rank_takes_the_nearest():
    assert (
        learning_rate(candidate("pissa-all-linear-r24", r=24, displacements={"pissa": 10.0}), 780, PROPORTIONAL) == 3e-5
    )


def test_ratio_is_the_geometric_mean_over_layers():
    layers = [
        planted.layer("layers.0.q_proj", displacements={"eva": 2.0}),
        planted.layer("layers.0.up_proj", displacements={"eva": 8.0}),
    ]
    eva = next(c for c in enumerate_candidates(planted.of(layers)) if c.key == "eva-all-linear-r8")
    assert displacement_ratio(eva) == pytest.approx(4.0)


def test_the_fitted_power_tempers_the_displacement():
    """A sixteenfold displacement at power 1/2 takes a quarter of the rate."""
    tempered = dataclasses.replace(shipped(), displacement_power=0.5)
    pissa = candidate("pissa-all-linear-r16", displacements={"pissa": 16.0})
    assert learning_rate(pissa, 780, tempered) == pytest.approx(3e-4 / 4, rel=0.02)


def test_variants_that_move_less_far_than_lora_follow_the_displacement_itself():
    slow = candidate("eva-all-linear-r16", displacements={"eva": 1 / 16})
    constants = dataclasses.replace(shipped(), displacement_power=0.5)
    assert learning_rate(slow, 780, constants) == pytest.approx(3e-4 * 16, rel=0.02)


def test_a_published_rate_rises_in_short_runs_as_lora_s_does():
    miss = next(c for c in enumerate_candidates(planted.spectra(), 16, "miss") if c.variant.name == "miss")
    assert learning_rate(miss, 780) == miss.variant.reference_rate == 1e-4
    short = reference_rate(24, shipped(), displacement=1.0)
    assert learning_rate(miss, 24) == pytest.approx(1e-4 * short / 3e-4, rel=0.05)
    assert short > 6e-4


def test_short_runs_follow_the_displacement_of_the_model_and_long_ones_do_not():
    constants = dataclasses.replace(shipped(), rate=2e-3, displacement=1.0, displacement_power=0.5)
    still, moving = (candidate("lora-all-linear-r16", displacements={"lora": moved}) for moved in (1.0, 4.0))
    assert learning_rate(still, 24, constants) == 2e-3
    assert learning_rate(moving, 24, constants) == 1e-3
    assert learning_rate(moving, 780, constants) == 3e-4
    assert reference_rate(24, constants, 1e6) == reference_rate(24, constants, 6.0)


@pytest.mark.parametrize(
    ("parameters", "moved", "steps", "rows", "told"),
    [
        (0, 1.0, 60, 100, ()),
        (350_000_000, 1.0, 60, 100, ()),
        (7_000_000_000, 1.0, 60, 100, ("7 B", "135 M to 268 M")),
        (0, 0.1, 60, 100, ("displaces by 0.1",)),
        (0, 1.0, 10_000, 100, ("10,000 steps",)),
        (0, 1.0, 60, 48, ("48 rows",)),
        (7_000_000_000, 1.0, 10_000, 100, ("7 B", "10,000 steps")),
    ],
    ids=[
        "no size known",
        "near the shown models",
        "a large model",
        "moves little",
        "a long run",
        "few rows",
        "two of them",
    ],
)
def test_the_answer_says_where_the_learning_rate_was_never_shown(parameters, moved, steps, rows, told):
    spectra = dataclasses.replace(planted.spectra(displacements={"lora": moved}), model_parameters=parameters)
    profile = planted.profile()
    profile = dataclasses.replace(profile, train=dataclasses.replace(profile.train, rows=rows))
    decision = select(profile, spectra, planted.inputs(planned_steps=steps))
    lines = [line for line in answer(decision) if line.startswith(UNSHOWN)]
    assert len(lines) == bool(told)
    assert all(part in lines[0] for part in told)


def test_a_named_learning_rate_is_no_prediction():
    spectra = dataclasses.replace(planted.spectra(), model_parameters=7_000_000_000)
    decision = select(planted.profile(), spectra, planted.inputs(learning_rate=1e-4))
    assert not any(UNSHOWN in line for line in answer(decision))
