import dataclasses
import random
import subprocess
import sys
from pathlib import Path

import planted
import pytest

from lora_select.errors import InputError
from lora_select.records import Decision, from_json, to_json
from lora_select.selection.calibration import reference_rate, shipped
from lora_select.selection.rule import RULE, RULE_VERSION, select
from lora_select.variants import CANDIDATES

HOME_RATE = reference_rate(60, shipped(), displacement=1.0)  # of planted layers
CLAIM = {"tangent_share_predicts_short_runs": True}


def decide(spectra=None, profile=None, **constraints) -> Decision:
    return select(profile or planted.profile(), spectra or planted.spectra(), planted.inputs(**constraints))


def by_key(decision: Decision):
    return {candidate.key: candidate for candidate in decision.candidates}


def test_without_a_proven_claim_the_rule_abstains_to_all_linear_lora():
    decision = decide(planted.spectra(shares={"eva": 0.9, "pissa": 0.8}))
    assert decision.abstained
    assert decision.choice_key == "lora-all-linear-r16"
    assert decision.choice.learning_rate == HOME_RATE
    assert (decision.choice.lora_alpha, decision.choice.scale) == (32, 2.0)
    assert decision.choice.target_modules == ("down_proj", "q_proj", "up_proj", "v_proj")
    assert any("our sweep has too few settings" in reason for reason in decision.reasons)
    assert any("eva 0.900 ± 0.010" in reason and "not used" in reason for reason in decision.reasons)
    assert (decision.rule, decision.rule_version) == (RULE, RULE_VERSION)


@pytest.mark.parametrize("seed", range(5))
def test_what_a_smaller_pass_measures_worse_decides_nothing(seed):
    """Only displacements are read where nothing races: signals, errors and shares may be anything."""
    draw = random.Random(seed)
    shares = {variant.name: draw.random() for variant in CANDIDATES}
    noisy = planted.spectra(shares=shares, signal=draw.uniform(-1, 5), error=draw.random())
    choice, other = decide(noisy).choice, decide(planted.spectra()).choice
    assert choice == other


def test_every_candidate_but_the_choice_says_why_not():
    decision = decide()
    assert len(decision.candidates) == len(CANDIDATES) * 2 * 3
    for candidate in decision.candidates:
        assert (candidate.key == decision.choice_key) == (not candidate.rejected)
        if not (candidate.spec.variant == "lora_ga" and candidate.spec.r == 32):  # 2 r directions do not fit the layers
            assert all(sentence.startswith("tied: ") for sentence in candidate.rejected)
        assert {item.name for item in candidate.evidence} >= {"tangent_share", "num_parameters", "rank_floor"}
    assert "costs more: 2 times the parameters" in by_key(decision)["lora-all-linear-r32"].rejected[0]
    assert "0.5 times the parameters" in by_key(decision)["lora-all-linear-r8"].rejected[0]


def test_parameters_are_counted_over_the_targets():
    candidates = by_key(decide())
    everything = sum(m + n for m, n in planted.KINDS.values()) * 2
    assert candidates["lora-all-linear-r8"].spec.num_parameters == 8 * everything
    outputs = sum(m for m, _ in planted.KINDS.values()) * 2
    assert candidates["dora-all-linear-r8"].spec.num_parameters == 8 * everything + outputs
    assert candidates["lora-mlp-only-r8"].spec.target_modules == ("down_proj", "up_proj")


def test_with_the_claim_a_tangent_space_that_holds_the_update_wins():
    decision = decide(planted.spectra(shares={"eva": 0.95}, displacements={"eva": 6.0}), claims=CLAIM)
    assert not decision.abstained
    assert decision.choice_key == "eva-all-linear-r16"
    assert decision.choice.init == "eva"
    assert decision.choice.learning_rate == pytest.approx(HOME_RATE / 6 ** shipped().displacement_power, rel=0.05)
    assert any("0.950 ± 0.010 is above 2 times LoRA's" in reason for reason in decision.reasons)
    assert all(c.rejected for c in decision.candidates if c.key != decision.choice_key)


def test_with_the_claim_a_tie_goes_to_the_cheaper():
    decision = decide(planted.spectra(shares={"dora": 0.95, "eva": 0.94}), claims=CLAIM)
    assert decision.choice_key == "eva-all-linear-r16"
    assert "costs more" in by_key(decision)["dora-all-linear-r16"].rejected[0]
    assert any("cheapest of 2 tied" in reason for reason in decision.reasons)


def test_with_the_claim_a_clear_difference_beats_the_price():
    decision = decide(planted.spectra(shares={"dora": 0.95, "eva": 0.8}), claims=CLAIM)
    assert decision.choice_key == "dora-all-linear-r16"


@pytest.mark.parametrize(
    ("options", "constraints", "cause"),
    [
        ({"shares": {"eva": 0.95}, "error": 0.3}, {}, "above 2 times LoRA's"),
        ({"shares": {"eva": 0.4}}, {}, "above 2 times LoRA's"),
        ({"shares": {"eva": 0.95}}, {"planned_steps": 101}, "101 steps are planned"),
    ],
)
def test_with_the_claim_it_still_abstains_in_noise_or_on_long_runs(options, constraints, cause):
    decision = decide(planted.spectra(**options), claims=CLAIM, **constraints)
    assert decision.abstained
    assert decision.choice_key == "lora-all-linear-r16"
    assert any(cause in reason for reason in decision.reasons)


def test_a_winner_that_cannot_be_served_does_not_win():
    decision = decide(planted.spectra(shares={"dora": 0.95}), claims=CLAIM, serve="vllm")
    assert decision.abstained
    assert any("vLLM" in sentence for sentence in by_key(decision)["dora-all-linear-r16"].rejected)


@pytest.mark.parametrize("claims", [{}, CLAIM])
def test_the_order_of_layers_changes_nothing(claims):
    record = planted.spectra(blocks=5, shares={"eva": 0.95, "dora": 0.9499}, signal=0.1)
    shuffled = list(record.layers)
    random.Random(0).shuffle(shuffled)
    first, second = decide(record, claims=claims), decide(planted.of(shuffled), claims=claims)
    assert dataclasses.replace(first, spectra_digest="") == dataclasses.replace(second, spectra_digest="")


def test_the_order_of_the_catalogue_changes_nothing_but_the_listing(monkeypatch):
    from lora_select.selection import candidates

    record = planted.spectra(shares={"dora": 0.95, "eva": 0.94})
    before = decide(record, claims=CLAIM)
    monkeypatch.setattr(candidates, "CANDIDATES", tuple(reversed(candidates.CANDIDATES)))
    monkeypatch.setattr(candidates, "ADAPTER_RANKS", tuple(reversed(candidates.ADAPTER_RANKS)))
    after = decide(record, claims=CLAIM)
    assert after.choice == before.choice
    assert by_key(after) == by_key(before)


def test_capacity_floor_lifts_the_rank():
    # sum (m + n) = 2 * 608: break-even rank = bits / 2432
    decision = decide(profile=planted.profile(information_bits=2432 * 4))
    assert decision.choice_key == "lora-all-linear-r32"
    sentence = by_key(decision)["lora-all-linear-r16"].rejected[0]
    assert "r 16 is below the capacity floor 20.0" in sentence
    assert any("r 32 is above the capacity floor 20" in reason for reason in decision.reasons)


def test_a_floor_above_every_rank_takes_the_largest_and_says_so():
    decision = decide(profile=planted.profile(information_bits=1e9))
    assert decision.choice_key == "lora-all-linear-r32"
    assert any("BELOW the capacity floor" in reason for reason in decision.reasons)


@pytest.mark.parametrize(
    ("constraints", "key"),
    [
        ({"variant": "dora"}, "dora-all-linear-r16"),
        ({"targets": "mlp-only"}, "lora-mlp-only-r16"),
        ({"r": 4}, "lora-all-linear-r4"),
        ({"r": 4, "variant": "pissa", "targets": "mlp-only"}, "pissa-mlp-only-r4"),
    ],
)
def test_what_the_config_names_is_respected_and_recorded(constraints, key):
    decision = decide(**constraints)
    assert decision.choice_key == key
    assert decision.abstained == ("variant" not in constraints)
    for name in constraints:
        assert any("config names" in reason and name in reason for reason in decision.reasons)
    other = next(c for c in decision.candidates if c.key != key and any("config names" in s for s in c.rejected))
    assert other


def test_a_named_rank_below_the_floor_is_respected():
    decision = decide(profile=planted.profile(information_bits=2432 * 4), r=8)
    assert decision.choice.r == 8
    assert any("r 8, named by the config, is BELOW" in reason for reason in decision.reasons)


def test_a_named_rate_is_recorded():
    decision = decide(learning_rate=1e-3)
    assert decision.choice.learning_rate == 1e-3
    assert any("0.001, named by the config" in reason for reason in decision.reasons)


@pytest.mark.parametrize(
    ("constraints", "sentences"),
    [
        ({"variant": "dorra"}, ["'dorra' is not a variant; did you mean dora?"]),
        ({"targets": "mlp"}, ["'mlp' is unknown"]),
        ({"variant": "x", "r": 0}, ["'x' is not a variant", "must be at least 1, got 0"]),
        ({"claims": {"tangent_share": True}}, ["did you mean tangent_share_predicts_short_runs"]),
        (
            {"variant": "dora", "serve": "vllm"},
            ["no adapter meets every constraint", "dora has no LoRA of the same function"],
        ),
        ({"variant": "pissa", "allow_modified_base": False}, ["allow_modified_base is false"]),
        ({"max_parameters": 10}, ["above `max_parameters` 10"]),
        ({"r": 200}, ["r 200 is above the smallest side 32 of model.layers.0.self_attn.v_proj"]),
    ],
)
def test_contradictions_are_input_errors(constraints, sentences):
    with pytest.raises(InputError) as caught:
        decide(**constraints)
    for sentence in sentences:
        assert sentence in str(caught.value)


def test_targets_that_the_model_does_not_have():
    attention = planted.of([planted.layer("layers.0.q_proj")])
    assert decide(attention).choice.targets == "all-linear"
    with pytest.raises(InputError, match=r"no candidate has targets 'mlp-only'.*q_proj"):
        decide(attention, targets="mlp-only")


def test_no_layer_at_all():
    with pytest.raises(InputError, match="holds no layer"):
        decide(planted.of([]))


def test_constraints_narrow_and_the_nearest_to_the_default_is_taken():
    decision = decide(max_parameters=8 * 608 * 2)
    assert decision.choice_key == "lora-all-linear-r8"
    assert any("above `max_parameters` 9,728" in s for s in by_key(decision)["lora-all-linear-r16"].rejected)
    tight = decide(max_parameters=8 * 608 * 2 - 1)
    assert tight.choice_key == "lora-mlp-only-r8"


def test_a_decision_survives_json():
    decision = decide(serve="vllm", max_parameters=20000)
    assert from_json(Decision, to_json(decision)) == decision


SECOND_PROCESS = """
import sys
sys.path.insert(0, sys.argv[1])
import planted
from lora_select.records import to_json
from lora_select.selection.calibration import reference_rate, shipped
from lora_select.selection.rule import select
decision = select(planted.profile(), planted.spectra(shares={"eva": 0.9}), planted.inputs())
sys.stdout.write(to_json(decision))
"""


def test_a_second_process_gives_the_same_bytes():
    command = [sys.executable, "-c", SECOND_PROCESS, str(Path(planted.__file__).parent)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert output == to_json(decide(planted.spectra(shares={"eva": 0.9})))
