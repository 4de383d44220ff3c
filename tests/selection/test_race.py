"""Who races and what a race says, on planted probes."""

import dataclasses
import math
import random

import planted
import pytest

from lora_select.errors import InputError
from lora_select.records import Race, Trial, from_json, to_json
from lora_select.selection import race as rules
from lora_select.selection.calibration import shipped
from lora_select.selection.prediction import PREDICTED_GAIN
from lora_select.selection.rule import prepare_race, select

HOME, MLP, EVA = "lora-all-linear-r16", "lora-mlp-only-r16", "eva-all-linear-r16"
LABELS = (4,) * 40
BASE = 2.0


def probe(key, rate, loss, *, steps=20, forgets=0.1, spread=0.0, seed=0) -> Trial:
    """A probe of this loss per token; `spread` is the noise of each row's loss per token."""
    noise = random.Random(seed)
    rows = tuple(4 * (loss + spread * noise.gauss(0, 1)) for _ in LABELS) if math.isfinite(loss) else ()
    return Trial(key, rate, steps, 0, rows, 3.0 + forgets if rows else None, (2.0, 1.0), 1000, 1.0)


def race(*probes, rungs=(20,), dropped=()) -> Race:
    return Race(
        profile_digest="p", spectra_digest="s", budget=1.0, planned_steps=80, rungs=rungs, labels=LABELS,
        base_held_out=tuple(4 * BASE for _ in LABELS), base_reference=3.0, probes=probes, dropped=dict(dropped),
        cost=0.5, seconds=1.0, notes=(),
    )  # fmt: skip


def decide(made: Race, **constraints):
    return select(planted.profile(), planted.spectra(), planted.inputs(race_budget=1.0, **constraints), made)


def test_below_six_trainings_plain_lora_races_alone_at_three_rates():
    [entrant] = prepare_race(planted.profile(), planted.spectra(), planted.inputs(race_budget=5.9)).entrants
    middle = entrant.spec.learning_rate
    assert entrant.key == HOME
    assert entrant.rates == pytest.approx((middle / 3, middle, middle * 3), rel=0.05)


@pytest.mark.parametrize("entrants", [1, 2, 3, 4])
def test_three_trainings_pay_for_each_entrant_eva_first_then_mlp_only_then_the_largest_shares(entrants):
    spectra = planted.spectra(shares={"eva": 0.5, "pissa": 0.7})
    plan = prepare_race(planted.profile(), spectra, planted.inputs(race_budget=3.0 * entrants))
    order = [HOME, EVA, MLP, "pissa-all-linear-r16"]
    assert [entrant.key for entrant in plan.entrants] == order[:entrants]
    assert plan.rungs == (planted.inputs().planned_steps,)
    assert [note.split(" ")[0] for note in plan.notes] == order[entrants:]


def test_eva_is_no_first_rival_where_its_share_does_not_clear_twice_loras():
    spectra = planted.spectra(shares={"eva": 0.01, "pissa": 0.7})
    plan = prepare_race(planted.profile(), spectra, planted.inputs(race_budget=6.0))
    assert [entrant.key for entrant in plan.entrants] == [HOME, MLP]


def test_what_the_user_named_races_alone_and_a_named_rate_is_the_only_one():
    named = planted.inputs(race_budget=10.0, variant="eva", r=8, targets="all-linear", learning_rate=2e-4)
    [entrant] = prepare_race(planted.profile(), planted.spectra(), named).entrants
    assert (entrant.key, entrant.rates) == ("eva-all-linear-r8", (2e-4,))


@pytest.mark.parametrize("budget", [1.2, 2.0, 3.0, 8.0, 20.0])
def test_a_race_never_costs_more_than_its_budget(budget):
    plan = prepare_race(planted.profile(), planted.spectra(), planted.inputs(race_budget=budget, planned_steps=60))
    probes = sum(len(entrant.rates) for entrant in plan.entrants)
    assert plan.rungs[-1] >= rules.MINIMUM_STEPS
    assert probes * sum(plan.rungs) <= budget * 60
    assert plan.rungs[-1] <= 60
    assert len(plan.entrants) + len(plan.notes) == 4
    assert all("does not race" in note for note in plan.notes)


def test_a_budget_that_pays_for_nothing_is_refused_with_the_one_that_would():
    with pytest.raises(
        InputError, match=r"at least 3 trials of 24 steps, 120 % of the 60 planned ones; the budget is 5 %"
    ):
        prepare_race(planted.profile(), planted.spectra(), planted.inputs(race_budget=0.05))


def test_probes_of_a_training_shorter_than_the_least_probe_are_as_long_as_the_training():
    plan = prepare_race(planted.profile(), planted.spectra(), planted.inputs(race_budget=3.0, planned_steps=10))
    assert plan.rungs == (10,)


def test_a_clearly_better_candidate_replaces_the_reference():
    decision = decide(race(probe(HOME, 1e-3, 1.5), probe(EVA, 3e-4, 1.2), probe(EVA, 1e-3, 1.4)))
    assert (decision.choice_key, decision.abstained) == (EVA, False)
    assert decision.choice.learning_rate == pytest.approx(3e-4 * shipped().rung_shift, rel=0.05)
    assert any("0.300 ± 0.000 nats/token behind it" in reason for reason in decision.reasons)


def test_a_difference_inside_the_noise_leaves_plain_lora_at_its_best_rate():
    """Rows that disagree by 1 nat give a standard error of about 0.2."""
    decision = decide(race(probe(HOME, 1e-3, 1.3), probe(HOME, 1e-4, 1.9), probe(EVA, 3e-4, 1.25, spread=1.0, seed=3)))
    assert (decision.choice_key, decision.abstained) == (HOME, True)
    assert any("nothing that raced beats lora-all-linear-r16" in reason for reason in decision.reasons)


def test_within_one_percent_of_the_loss_the_one_that_forgets_half_as_much_is_taken():
    tied = race(probe(HOME, 1e-3, 1.2, forgets=0.3), probe(MLP, 1e-3, 1.205, forgets=0.1))
    assert decide(tied).choice_key == MLP
    assert any("forgets +0.100 against +0.300" in reason for reason in decide(tied).reasons)
    behind = race(probe(HOME, 1e-3, 1.2, forgets=0.3), probe(MLP, 1e-3, 1.24, forgets=0.1))
    assert decide(behind).choice_key == HOME
    trifle = race(probe(HOME, 1e-3, 1.2, forgets=0.015), probe(MLP, 1e-3, 1.2, forgets=0.001))
    assert decide(trifle).choice_key == HOME


def test_where_retention_is_preferred_a_rival_within_one_standard_error_that_forgets_half_as_much_is_taken():
    home = probe(HOME, 1e-3, 1.2, forgets=0.3, spread=1.0, seed=3)
    made = race(home, probe(MLP, 1e-3, rules.mean_loss(home.held_out, LABELS) + 0.05, forgets=0.1))
    gap = rules.difference(made.probes[1].held_out, made.probes[0].held_out, LABELS)
    assert 0.02 < gap.value < gap.error
    assert decide(made).choice_key == HOME
    assert decide(made, prefer_retention=True).choice_key == MLP


def test_of_rates_that_tie_the_lowest_is_taken():
    decision = decide(race(probe(HOME, 3e-3, 1.200, forgets=1.0), probe(HOME, 1e-3, 1.205), probe(HOME, 3e-4, 1.6)))
    assert decision.choice.learning_rate == pytest.approx(1e-3 * shipped().rung_shift, rel=0.05)


def test_where_retention_is_preferred_a_lower_rate_within_one_standard_error_is_taken_if_it_forgets_half_as_much():
    """Rows that disagree by 1 nat give a standard error of about 0.2, far more than the difference of 0.05."""
    best = probe(HOME, 3e-3, 1.20, forgets=0.3, spread=1.0, seed=3)
    level = rules.mean_loss(best.held_out, LABELS)
    error = rules.difference(probe(HOME, 1e-3, level).held_out, best.held_out, LABELS).error
    assert 0.1 < error < 0.3

    def taken(behind, forgets):
        lower = probe(HOME, 1e-3, level + behind, forgets=forgets)
        assert rules.gentlest([lower, best], LABELS, 3.0) == best
        return rules.gentlest([lower, best], LABELS, 3.0, retention=True).learning_rate

    assert taken(0.05, forgets=0.14) == 1e-3
    assert taken(0.05, forgets=0.16) == 3e-3
    assert taken(1.1 * error, forgets=0.0) == 3e-3


def test_the_gain_of_a_probe_as_long_as_the_training_is_what_is_predicted_for_other_rows_and_another_seed():
    made = race(probe(HOME, 1e-3, 1.2, steps=80, spread=0.5, seed=1), probe(HOME, 3e-3, 1.9, steps=80), rungs=(80,))
    decision = decide(made, planned_steps=80)
    [gain] = [e for c in decision.candidates for e in c.evidence if e.name == PREDICTED_GAIN]
    share = 1 - rules.mean_loss(made.probes[0].held_out, LABELS) / BASE
    rows = rules.difference(made.base_held_out, made.probes[0].held_out, LABELS).error
    seeds = shipped().seed_sd_share * rules.mean_loss(made.probes[0].held_out, LABELS)
    scale = planted.profile().base_loss / BASE
    assert gain.source == "race"
    assert gain.value == pytest.approx(planted.profile().base_loss * share)
    assert gain.standard_error == pytest.approx(scale * math.sqrt(2) * math.hypot(rows, seeds))
    assert any("trial of as many steps" in reason for reason in decision.reasons)


def test_the_gain_of_a_shorter_probe_predicts_nothing():
    decision = decide(race(probe(HOME, 1e-3, 1.2)))
    assert not any(e.name == PREDICTED_GAIN for c in decision.candidates for e in c.evidence)


def test_diverged_and_clearly_worse_probes_are_dropped_with_the_reason_and_the_reference_stays():
    probes = [probe(HOME, 1e-3, 1.5), probe(HOME, 1e-2, math.inf), probe(EVA, 1e-3, 1.2), probe(EVA, 1e-4, 1.9)]
    found = rules.dropped(probes, LABELS)
    assert set(found) == {f"{HOME} 0.01", f"{EVA} 0.0001"}
    assert "diverged" in found[f"{HOME} 0.01"]
    assert "0.700 ± 0.000" in found[f"{EVA} 0.0001"]


def test_a_race_in_which_no_start_could_be_made_drops_nothing():
    assert rules.dropped([], LABELS) == {}


def test_a_rate_that_the_user_named_is_no_edge():
    [alone] = rules.standings(race(probe(HOME, 1e-3, 1.2)))
    assert not alone.at_edge
    [tried] = rules.standings(race(probe(HOME, 1e-3, 1.2), probe(HOME, 3e-3, 1.5)))
    assert tried.at_edge


def test_a_race_in_which_all_diverge_decides_nothing():
    decision = decide(race(probe(HOME, 1e-3, math.inf), probe(EVA, 1e-3, math.inf)))
    assert decision.choice_key == HOME
    assert decision.abstained


def test_a_refused_candidate_cannot_win_a_race():
    decision = decide(race(probe(HOME, 1e-3, 1.5), probe(EVA, 1e-3, 1.0)), variant="lora")
    assert decision.choice.variant == "lora"


def test_the_paired_error_covers_in_simulation():
    """Two models on the same rows with a true difference of 0.1: two standard errors hold it in about 95 % of draws."""
    hits = 0
    for seed in range(400):
        drawn = random.Random(seed)
        labels = [drawn.randint(1, 12) for _ in range(40)]
        hard = [drawn.gauss(2.0, 1.0) for _ in labels]
        a = [count * (level + 0.1 + drawn.gauss(0, 0.3)) for count, level in zip(labels, hard, strict=True)]
        b = [count * level for count, level in zip(labels, hard, strict=True)]
        found = rules.difference(a, b, labels)
        hits += abs(found.value - 0.1) <= 2 * found.error
    assert 0.9 <= hits / 400 <= 0.99


def test_the_decision_follows_from_the_records_byte_for_byte():
    made = race(probe(HOME, 1e-3, 1.5, spread=0.1), probe(EVA, 3e-4, 1.2, spread=0.1, seed=1))
    first = to_json(decide(made))
    assert first == to_json(decide(from_json(Race, to_json(made))))
    other = dataclasses.replace(made, base_reference=3.1)
    assert to_json(decide(other)) != first
