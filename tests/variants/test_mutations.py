"""Single-formula errors planted in every variant are caught by its contract and closed forms: `make test-slow`."""

import mutants
import pytest

from lora_select.variants import VARIANTS

SURVIVORS = {
    "adalora": (6, "alpha and the placeholders of the schedule are choices that PEFT is told as well"),
    "boft": (1, "PEFT falls back to one butterfly factor whatever it is told"),
    "delora": (1, "the start of lambda is a choice that PEFT is told as well"),
    "dora": (3, "two guards of layers too small; the magnitudes' step alone is tested in test_dora"),
    "fourierft": (1, "the scale is a choice that PEFT is told as well"),
    "hira": (2, "the cap at 1; the Hadamard factor, near 1 in this layer, lies within the first-order form's slack"),
    "loftq": (11, "a stated bound, checked within a factor of 3"),
    "loha": (1, "27 -> 28 lies within the sampling error of a displacement"),
    "lokr": (1, "9 -> 10 lies within the sampling error of a displacement"),
    "lora_one": (3, "a stated bound, checked within a factor of 3"),
    "milora": (16, "this layer's spectrum is wholly measured, so the extrapolation to what was not is not exercised"),
    "oft": (1, "PEFT's module dropout does nothing in a layer with one token a row"),
    "orthogonal": (1, "100 -> 101 lies within the sampling error of a displacement"),
    "pissa": (1, "the scale is 1: 1 + x and 1 x are within the tolerance of a displacement"),
    "randlora": (3, "alpha is a choice that PEFT is told as well"),
    "shira": (1, "the seed of the mask is a choice"),
    "tinylora": (1, "with one layer, tying changes nothing"),
    "waveft": (2, "the scale is a choice that PEFT is told as well; the cap at 1"),
}
"""How many may survive in a variant, and why."""
SHARERS = ("lora", "rslora", "lorafa", "mica", "pissa")
"""Variants that between them use every line of what the low-rank ones share."""


@pytest.mark.slow
def test_planted_errors_are_caught(capsys):
    planted, survived = mutants.study_shared(SHARERS)
    unexpected = list(survived)
    for variant in VARIANTS:
        count, alive = mutants.study(variant.name)
        planted += count
        survived += alive
        if len(alive) > SURVIVORS.get(variant.name, (0, ""))[0]:
            unexpected += alive
    with capsys.disabled():
        print(f"\ncaught {planted - len(survived)} of {planted} planted errors in {len(VARIANTS)} variants")
    assert unexpected == []
    assert planted > 720


def test_an_error_is_caught_and_the_formula_itself_is_not(monkeypatch):
    """The check of the check: nothing planted survives as it must, and one planted error in LoRA does not."""
    one, rtol, shapes = mutants.examples("lora")[0]
    assert mutants.survives(one, rtol, shapes)
    planted = list(mutants.mutants("def weight_of(a, b):\n    return a + 2 * (a @ b.T)\n", ("weight_of",)))
    texts = [text for _, text in planted]
    assert any("a - 2 * (a @ b.T)" in text for text in texts)
    assert any("a + 3 * (a @ b.T)" in text for text in texts)
    assert any("a @ b.real" in text for text in texts)
    assert any("a * b.T" in text for text in texts)
    count, alive = mutants.study("miss")
    assert (count, alive) == (8, [])
