import planted
import pytest

from lora_select.selection.candidates import aggregate_share, enumerate_candidates
from lora_select.selection.explanation import brief, explain
from lora_select.selection.rule import RULE_VERSION, select


def share(layers, key="eva-all-linear-r8", r=None):
    record = planted.of(layers)
    return aggregate_share(next(c for c in enumerate_candidates(record, r) if c.key == key), record.layers)


def test_shares_are_weighted_by_signal_and_errors_add():
    layers = [
        planted.layer("layers.0.q_proj", signal=3.0, shares={"eva": 0.2}, error=0.1),
        planted.layer("layers.0.up_proj", signal=1.0, shares={"eva": 0.6}, error=0.2),
    ]
    assert share(layers) == pytest.approx((0.3, 0.125))
    assert share(layers, "eva-mlp-only-r8") == pytest.approx((0.15, 0.05))


def test_a_negative_signal_energy_has_no_weight():
    layers = [
        planted.layer("layers.0.q_proj", signal=-3.0, shares={"eva": 0.2}),
        planted.layer("layers.0.up_proj", signal=1.0, shares={"eva": 0.6}),
    ]
    assert share(layers)[0] == pytest.approx(0.6)


def test_without_any_signal_layers_count_by_size():
    layers = [
        planted.layer("layers.0.q_proj", (10, 10), signal=0.0, shares={"eva": 0.2}),
        planted.layer("layers.0.up_proj", (30, 10), signal=-1.0, shares={"eva": 0.6}),
    ]
    assert share(layers)[0] == pytest.approx(0.5)


def test_an_unmeasured_rank_has_no_share():
    assert share([planted.layer("layers.0.q_proj")], "eva-all-linear-r24", r=24) is None


def test_in_brief_stands_what_decided_and_how_many_others_there_were():
    decision = select(planted.profile(), planted.spectra(), planted.inputs(serve="vllm"))
    text = brief(decision, "runs/x")
    shares = next(sentence for sentence in decision.reasons if sentence.startswith("Tangent shares"))
    assert shares in explain(decision) or shares.removesuffix(" They are recorded and not used.") in explain(decision)
    assert shares[:60] not in text
    assert decision.reasons[0] in text
    assert f"{len(decision.candidates) - 1} other candidates" in text
    assert "explain runs/x" in text


def test_explain_tells_choice_reasons_ties_and_refusals():
    decision = select(planted.profile(), planted.spectra(), planted.inputs(serve="vllm"))
    text = explain(decision)
    head, why, *_ = text.splitlines()
    choice = decision.choice
    assert all(part in head for part in ("LoRA on all linear layers", "r 16", "alpha 32", f"{choice.learning_rate:g}"))
    assert "default" in why
    tied = sum(all(s.startswith("tied:") for s in c.rejected) for c in decision.candidates) - 1
    refused = len(decision.candidates) - tied - 1
    parts = (
        "Why:",
        f"({tied}):",
        f"and {tied - 3} more",
        f"Not taken ({refused}):",
        "dora has no LoRA of the same function",
        decision.choice_key,
        f"version {RULE_VERSION}",
    )
    for part in parts:
        assert part in text
