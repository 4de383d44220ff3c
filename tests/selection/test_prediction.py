"""Predictions and what came of them."""

import dataclasses
import math
import random
import statistics
from pathlib import Path

import mlflow_samples
import planted
import pytest

from lora_select import records
from lora_select.errors import InputError
from lora_select.pipeline.calibrate import calibrate, refit
from lora_select.records import Evidence
from lora_select.selection import explanation, findings
from lora_select.selection.calibration import Calibration, Curve, reference_rate, shipped
from lora_select.selection.prediction import (
    PREDICTED_GAIN,
    coverage,
    forecast,
    forecast_sentence,
    outcome,
    predicted_gain,
)
from lora_select.selection.rule import select

EARLIER = Path(__file__).parents[1] / "pipeline" / "earlier_run"
KNOWN = Calibration("planted", 8, 24, 1e-3, 0.5, 0.5, 0.1, 1.0, 0.1, 1.0, 0.02)


def decided(monkeypatch, constants=KNOWN):
    for module in (explanation, findings):
        monkeypatch.setattr(module, "shipped", lambda: constants)
    return select(planted.profile(), planted.spectra(), planted.inputs())


def test_the_choice_alone_carries_a_prediction_and_the_reasons_name_its_source(monkeypatch):
    decision = decided(monkeypatch)
    carrying = [c.key for c in decision.candidates if any(e.name == PREDICTED_GAIN for e in c.evidence)]
    assert carrying == [decision.choice_key]
    assert any("falls by 1.00" in reason and "8 settings of 24 steps" in reason for reason in decision.reasons)


def test_two_settings_predict_nothing(monkeypatch):
    few = dataclasses.replace(KNOWN, settings=2)
    assert predicted_gain(planted.profile().base_loss, few) is None
    assert not any("Predicted" in reason for reason in decided(monkeypatch, few).reasons)


def test_nothing_is_predicted_before_a_training_where_the_interval_says_nothing(monkeypatch):
    wide = dataclasses.replace(KNOWN, gain_share_sd=0.15)
    assert predicted_gain(2.0, wide) is None
    assert predicted_gain(2.0, shipped()) is None
    decision = decided(monkeypatch, wide)
    assert not any(e.name == PREDICTED_GAIN for c in decision.candidates for e in c.evidence)
    assert not any("falls by" in reason for reason in decision.reasons)


CURVE = Curve(start=0.2, slope=0.8, sd=0.05, settings=12, runs=40, lost=(0.1, 0.9), steps=(12, 48))
LEARNT = dataclasses.replace(KNOWN, curve=CURVE)


def test_a_quarter_of_the_steps_tells_the_end_and_no_less():
    """24 steps: the fifth and sixth lost 1.0 of 2.0 nats, so 0.2 + 0.8 / 2 of them will be gone."""
    losses = [2.0, 1.9, 1.5, 1.3, 1.1, 0.9, 0.1]
    made = forecast(2.0, losses, 24, LEARNT)
    assert made.value == pytest.approx(2.0 * 0.6)
    assert made.standard_error == pytest.approx(2.0 * 0.05 * math.sqrt(1 + 1 / 12) * 2.2 / 1.96, rel=0.01)
    assert made == forecast(2.0, losses[:6], 24, LEARNT)
    assert "2.00 to about 0.80" in forecast_sentence(made, 2.0)
    assert forecast(2.0, losses[:5], 24, LEARNT) is None


@pytest.mark.parametrize(
    ("losses", "steps", "curve"),
    [
        ([2.0] * 6, 24, CURVE),  # nothing lost, as in no training that gave the constants
        ([0.01] * 6, 24, CURVE),  # more lost than in any
        ([1.0] * 25, 100, CURVE),  # longer than any
        ([1.0] * 6, 24, None),
        ([1.0] * 6, 24, dataclasses.replace(CURVE, sd=0.2)),  # too wide to say anything
    ],
)
def test_no_forecast_beyond_what_was_seen(losses, steps, curve):
    assert forecast(2.0, losses, steps, dataclasses.replace(KNOWN, curve=curve)) is None


def test_the_forecast_is_laid_beside_what_came_out(monkeypatch, tmp_path):
    decision = decided(monkeypatch, dataclasses.replace(KNOWN, gain_share_sd=0.15))
    adapter = records.read(records.Adapter, EARLIER / "adapter.json")
    evaluation = mlflow_samples.evaluation(tmp_path, 1.5)
    assert outcome(decision, evaluation, adapter) is None
    told = dataclasses.replace(adapter, forecast=Evidence("forecast", 0.9, 0.1, "nats/token", "step 6 of 24"))
    found = outcome(decision, evaluation, told)
    assert (found.observed, found.inside, found.when) == (pytest.approx(1.0), True, "step 6 of 24")
    assert "at step 6 of 24 it was predicted to take 0.900" in str(found)


def test_the_interval_covers_a_new_setting_in_simulation():
    """Constants from 5 settings, outcome of a sixth from the same population: 95 % intervals hold in 90 to 99 % of draws."""
    hits = 0
    for seed in range(500):
        drawn = random.Random(seed)
        *seen, new = (drawn.gauss(0.5, 0.02) for _ in range(6))
        fitted = dataclasses.replace(
            KNOWN, settings=5, gain_share=statistics.mean(seen), gain_share_sd=statistics.stdev(seen)
        )
        made = predicted_gain(planted.profile().base_loss, fitted)
        hits += abs(new * planted.profile().base_loss - made.value) <= 1.96 * made.standard_error
    assert 0.9 <= hits / 500 <= 0.99


@pytest.mark.parametrize(("loss", "inside"), [(1.5, True), (2.49, False)])
def test_what_came_out_is_laid_beside_it(monkeypatch, tmp_path, loss, inside):
    found = outcome(decided(monkeypatch), mlflow_samples.evaluation(tmp_path, loss))
    assert found.observed == pytest.approx(2.5 - loss)
    assert found.inside is inside
    assert ("OUTSIDE" in str(found)) is not inside
    assert coverage([found]).startswith(f"{int(inside)} of 1")


def past_runs(folder, decision, losses):
    for number, loss in enumerate(losses):
        place = folder / f"run-{number}"
        place.mkdir()
        records.write(place / "decision.json", decision)
        records.write(place / "profile.json", planted.profile())
        records.write(place / "spectra.json", planted.spectra())
        records.write(place / "evaluation.json", mlflow_samples.evaluation(place, loss))
    (folder / "latest").symlink_to("run-0")


def test_calibrate_counts_each_run_once_and_refits_what_runs_can_tell(monkeypatch, tmp_path):
    past_runs(tmp_path, decided(monkeypatch), [1.0, 1.25, 2.45])
    said = calibrate([str(tmp_path)], tmp_path / "new.json")
    assert "2 of 3 outcomes inside" in said
    made = records.read(Calibration, tmp_path / "new.json")
    assert (made.settings, made.rate) == (3, shipped().rate)
    assert made.gain_share == pytest.approx(statistics.mean([0.6, 0.5, 0.02]), abs=1e-4)


def test_calibrate_refuses_what_holds_no_finished_run_and_refits_nothing_from_one(monkeypatch, tmp_path):
    with pytest.raises(InputError, match="has both decision.json and evaluation.json"):
        calibrate([str(tmp_path)], None)
    past_runs(tmp_path, decided(monkeypatch), [1.0])
    assert "cannot be refitted from 1 run" in calibrate([str(tmp_path)], tmp_path / "new.json")
    assert not (tmp_path / "new.json").exists()
    assert refit([], KNOWN) is None


def test_rates_fall_with_the_steps_between_the_two_anchors():
    rates = [reference_rate(steps, KNOWN) for steps in (1, 24, 100, 300, 780, 10**6)]
    assert rates[0] == rates[1] == 1e-3
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == rates[-2] == 3e-4
