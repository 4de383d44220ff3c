"""One result whatever the ranks and the ZeRO stage, also when a run is taken up by other ranks; and the proof for each."""

import shutil

import pytest
import torch
from many_runs import torchrun
from safetensors.torch import load_file
from stage_jobs import ALONE, EVERY, STEPS, staged
from training_jobs import MODULES, job, spec

from lora_select.training.job import CHECKPOINTS, write_job
from lora_select.training.reload_check import examine
from lora_select.training.supervisor import metrics_file
from lora_select.training.worker import checkpoints

STAGES = (0, 1, 2, 3)
FEW = [(2, 2, 2), (2, 2, 3), (1, 1, 0), (2, 1, 2), (2, 1, 3)]
"""Who saved, who finished, at which stage: what the default tests compare with two ranks at ZeRO-0."""
REST = [
    (saved, finished, stage)
    for saved, finished in ((2, 2), (1, 1), (2, 1), (1, 2))
    for stage in STAGES
    if (saved, finished, stage) not in [*FEW, (2, 2, 0)]
]


OTHERS = {
    "lora+": spec(optimizer={"name": "lora+", "lora_b_ratio": 16.0}),
    "lora-fa": spec(optimizer={"name": "lora-fa"}),
    "riemannian": spec(optimizer={"name": "riemannian", "damping": 1e-6}),
    "adalora": spec(
        peft_class="AdaLoraConfig",
        peft_arguments={"init_r": 4, "target_r": 2, "lora_alpha": 8, "target_modules": MODULES, "total_step": 1},
        optimizer={"name": "adalora"},
    ),
}
"""Optimizers that keep something of their own: rates by group, state by layer, importances."""
SPLIT = {f"lora+ at ZeRO-{stage}": stage for stage in (2, 3)}
"""Its groups have a flat tensor each, which ZeRO splits."""


@pytest.fixture(scope="module")
def more_runs(runs, tmp_path_factory, tiny_model_folder):
    """`runs` and all other combinations of ranks and stages, and the optimizers in peace and resumed."""
    root = tmp_path_factory.mktemp("more")
    folders = dict(runs)

    def told(saved: int, finished: int) -> list:
        wanted = [who for who in REST if who[:2] == (saved, finished)]
        return [staged(folders, root, tiny_model_folder, *who) for who in wanted]

    def optimized(name: str, of: str | None = None):
        """The run with an optimizer of its own; it goes on from the checkpoint of the run `of`."""
        folder = folders[name] = root / name
        steps = {"total_steps": STEPS, "checkpoint_every": EVERY, "zero_stage": SPLIT.get(of or name, 0)}
        made = job(folder, tiny_model_folder, adapter=OTHERS.get(of or name, OTHERS["lora+"]), **steps, **ALONE)
        if of:
            shutil.copytree(folders[of] / CHECKPOINTS, folder / CHECKPOINTS)
        return write_job(folder, made)

    torchrun(2, told(2, 2))
    torchrun(1, [*told(1, 1), *told(2, 1), *(optimized(name) for name in (*OTHERS, *SPLIT))])
    torchrun(1, [optimized(f"{name}-again", name) for name in (*OTHERS, *SPLIT)])
    torchrun(2, told(1, 2))
    return folders


@pytest.mark.parametrize("who", FEW, ids=str)
def test_one_result(runs, who):
    """Losses in nats within 1e-5, parameters within 1e-4, of two ranks at ZeRO-0."""
    assert_one_result(runs, who)


@pytest.mark.slow
@pytest.mark.parametrize("who", REST, ids=str)
def test_one_result_of_all_others(more_runs, who):
    assert_one_result(more_runs, who)


def assert_one_result(runs, who):
    reference, folder = runs[2, 2, 0], runs[who]
    done = STEPS if who[0] == who[1] else STEPS - EVERY
    found = [step["loss"] for step in metrics_file.read_metrics(folder)]
    wanted = [step["loss"] for step in metrics_file.read_metrics(reference)]
    assert len(found) == done
    torch.testing.assert_close(found, wanted[-done:], rtol=1e-5, atol=1e-5)
    one, other = (load_file(f / "adapter" / "adapter_model.safetensors") for f in (folder, reference))
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("who", [(2, 2, 0), *FEW], ids=str)
def test_proof(runs, tiny_model_folder, who):
    assert_proven(runs[who], tiny_model_folder)


@pytest.mark.slow
@pytest.mark.parametrize("who", REST, ids=str)
def test_proof_of_all_others(more_runs, tiny_model_folder, who):
    assert_proven(more_runs[who], tiny_model_folder)


def assert_proven(folder, model):
    proof = examine(str(model), folder, "fp32")
    assert proof.passed, proof.faults
    assert proof.max_logit_difference < 1e-5
    assert proof.function_change > 1e-3


def test_checkpoints_of_two_stages_hold_the_same_state(runs):
    assert_same_state(runs, [(2, 2, 2), (2, 2, 3), (1, 1, 0)])


@pytest.mark.slow
def test_checkpoints_of_all_stages_hold_the_same_state(more_runs):
    assert_same_state(more_runs, [(ranks, ranks, stage) for ranks in (1, 2) for stage in STAGES])


def assert_same_state(runs, those):
    """The moments of Adam themselves agree, not only what follows from them."""
    name = checkpoints.name(EVERY)
    for file in (checkpoints.PARAMETERS, checkpoints.OPTIMIZER):
        reference = load_file(runs[2, 2, 0] / CHECKPOINTS / name / file)
        for who in those:
            found = load_file(runs[who] / CHECKPOINTS / name / file)
            assert found.keys() == reference.keys()
            for key in found:
                torch.testing.assert_close(found[key], reference[key], rtol=1e-3, atol=1e-7, msg=key)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*OTHERS, *SPLIT])
def test_other_optimizers_resume_exactly(more_runs, name):
    runs = more_runs
    found, wanted = ([step["loss"] for step in metrics_file.read_metrics(runs[key])] for key in (f"{name}-again", name))
    assert len(found) == STEPS - EVERY
    torch.testing.assert_close(found, wanted[-len(found) :], rtol=1e-6, atol=1e-6)
    one, other = (load_file(runs[key] / "adapter" / "adapter_model.safetensors") for key in (f"{name}-again", name))
    for key in one:
        torch.testing.assert_close(one[key], other[key], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", SPLIT)
def test_two_rates_are_the_same_at_every_stage(more_runs, name):
    one, other = (load_file(more_runs[key] / "adapter" / "adapter_model.safetensors") for key in (name, "lora+"))
    for key in one:
        torch.testing.assert_close(one[key], other[key], rtol=1e-4, atol=1e-5)
