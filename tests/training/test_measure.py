"""The measurement runs the real model in a process of its own, or says in a sentence why there is none."""

import dataclasses

from training_jobs import job

from lora_select.training import measure
from lora_select.training.measure import Measured


def test_a_real_model_is_measured_and_its_packing_proven(tiny_model_folder, tmp_path):
    told = job(tmp_path / "job", tiny_model_folder, count=45, packing=True, total_steps=5)
    found = measure.measure(told, tmp_path / "measured")
    assert isinstance(found, Measured)
    assert found.refusal is None
    assert found.seconds > 0
    assert 0.2 < found.peak_gib < 2
    assert 3 * 4 * 5 <= found.tokens <= 3 * 4 * 19
    assert found.heaviest_tokens >= found.tokens / 3


def test_a_failed_attempt_is_a_sentence_and_the_base_is_held_as_told(tiny_model_folder, tmp_path):
    told = job(tmp_path / "job", tiny_model_folder, count=9, total_steps=1)
    found = measure.measure(dataclasses.replace(told, quantized_base="fp4"), tmp_path / "measured")
    assert isinstance(found, str)
    assert found.startswith("speed was not measured: the attempt ended with")
    assert "`base_model.quantize` 'fp4' is unknown" in found
