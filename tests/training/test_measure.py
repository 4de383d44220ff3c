"""The measurement runs the real model in a process of its own, or says in a sentence why there is none."""

import dataclasses
import subprocess
import sys

import pytest
from training_jobs import job

from lora_select.training.planning import measure
from lora_select.training.planning.measure import Measured


@pytest.fixture(scope="module")
def told(tiny_model_folder, tmp_path_factory):
    return job(tmp_path_factory.mktemp("job"), tiny_model_folder, count=45, packing=True, total_steps=5)


@pytest.fixture(scope="module")
def alone(told, tmp_path_factory):
    """What one process measures."""
    return measure.measure(told, tmp_path_factory.mktemp("alone"))


def test_a_real_model_is_measured_and_its_packing_proven(alone):
    found = alone
    assert isinstance(found, Measured)
    assert (found.ranks, found.refusal) == (0, None)
    assert found.processor_seconds > 0
    assert found.seconds > 0
    assert 0.2 < found.peak_gib < 2
    assert 3 * 4 * 5 <= found.tokens <= 3 * 4 * 19
    assert found.heaviest_tokens >= found.tokens / 3


@pytest.mark.slow
def test_at_zero_3_the_ranks_themselves_are_tried(told, alone, tmp_path):
    """Split weights, DeepSpeed, two ranks; the batches are those of the plan though the trial steps after each of them."""
    split = dataclasses.replace(told, plan=dataclasses.replace(told.plan, zero_stage=3))
    found = measure.measure(split, tmp_path)
    assert isinstance(found, Measured), found
    assert (found.ranks, found.refusal) == (2, None)
    assert found.heaviest_tokens == alone.heaviest_tokens
    assert 0.2 < found.peak_gib < 2


@pytest.mark.slow
def test_ranks_that_fail_leave_their_own_words(tiny_model_folder, tmp_path):
    told = job(tmp_path / "job", tiny_model_folder, count=9, total_steps=1, zero_stage=3, num_processes=1)
    found = measure.measure(dataclasses.replace(told, base_path=str(tmp_path / "away")), tmp_path / "measured")
    assert isinstance(found, str)
    assert found.startswith("speed was not measured: the attempt ended with rank ")
    assert "away" in found


@pytest.mark.slow
def test_a_failed_attempt_is_a_sentence_and_the_base_is_held_as_told(tiny_model_folder, tmp_path):
    told = job(tmp_path / "job", tiny_model_folder, count=9, total_steps=1)
    found = measure.measure(dataclasses.replace(told, quantized_base="fp4"), tmp_path / "measured")
    assert isinstance(found, str)
    assert found.startswith("speed was not measured: the attempt ended with")
    assert "`base_model.quantize` 'fp4' is unknown" in found


@pytest.mark.slow
def test_the_peak_is_this_process_s_own_and_not_that_of_the_one_that_started_it():
    """The flow has held more than a rank by the time it starts one, and `ru_maxrss` is inherited."""
    child = "from lora_select.training.worker.loop import peak_memory_gib; print(peak_memory_gib('cpu'))"
    parent = f"import subprocess, sys; held = b'x' * 2**30; subprocess.run([sys.executable, '-c', {child!r}])"
    done = subprocess.run([sys.executable, "-c", parent], capture_output=True, text=True, check=True)
    assert 0.05 < float(done.stdout) < 0.8
