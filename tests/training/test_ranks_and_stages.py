"""One result whatever the ranks and the ZeRO stage, also when a run is taken up by other ranks; and the proof for each."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_jobs import MODULES, job, spec

from lora_select.records import AdapterSpec
from lora_select.training import checkpoints, show
from lora_select.training.job import CHECKPOINTS, write_job
from lora_select.training.prove_worker import examine

STAGES = (0, 1, 2, 3)
STEPS, EVERY = 6, 3
ALONE = {"num_processes": 1, "gradient_accumulation_steps": 2}
"""One rank with the micro-batches of two: the same slots, so the same dropout."""


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


def torchrun(ranks: int, files: list[Path]) -> None:
    script = Path(__file__).with_name("many_runs.py")
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(ranks),
        str(script),
    ]
    run = subprocess.run([*command, *map(str, files)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-4000:]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_model_folder):
    """`(ranks that saved, ranks that finished, stage)` -> folder; the ranks are equal in uninterrupted runs."""
    root = tmp_path_factory.mktemp("runs")
    folders = {}

    def told(saved: int, finished: int, stage: int) -> Path:
        """LoRA on odd shapes (r 3) with dropout, so that parts are uneven and random numbers count."""
        folder = folders[saved, finished, stage] = root / f"{saved}-{finished}-{stage}"
        ranks = {} if finished == 2 else ALONE
        arguments = spec().peft_arguments | {"r": 3, "lora_dropout": 0.2, "use_dora": True}
        made = job(
            folder,
            tiny_model_folder,
            adapter=spec(r=3, peft_arguments=arguments),
            zero_stage=stage,
            total_steps=STEPS,
            checkpoint_every=EVERY,
            **ranks,
        )
        if saved != finished:
            shutil.copytree(folders[saved, saved, stage] / CHECKPOINTS, folder / CHECKPOINTS)
        return write_job(folder, made)

    def resumed(name: str, adapter: AdapterSpec, stage: int = 0) -> Path:
        """The files of a run that goes on from the checkpoint of a run in peace, which was made before it."""
        folder = folders[name] = root / name
        steps = {"total_steps": STEPS, "checkpoint_every": EVERY, "zero_stage": stage}
        made = job(folder, tiny_model_folder, adapter=adapter, **steps, **ALONE)
        if name.endswith("again"):
            shutil.copytree(folders[name.removesuffix("-again")] / CHECKPOINTS, folder / CHECKPOINTS)
        return write_job(folder, made)

    torchrun(2, [told(2, 2, stage) for stage in STAGES])
    alone = [told(1, 1, stage) for stage in STAGES] + [told(2, 1, stage) for stage in STAGES]
    others = {name: (adapter, 0) for name, adapter in OTHERS.items()}
    others |= {name: (OTHERS["lora+"], stage) for name, stage in SPLIT.items()}
    torchrun(1, alone + [resumed(name, *how) for name, how in others.items()])
    torchrun(1, [resumed(f"{name}-again", *how) for name, how in others.items()])
    torchrun(2, [told(1, 2, stage) for stage in STAGES])
    return folders


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("ranks", [(2, 2), (1, 1), (2, 1), (1, 2)], ids=str)
def test_one_result(runs, ranks, stage):
    """Losses in nats within 1e-5, parameters within 1e-4, of two ranks at ZeRO-0."""
    reference, folder = runs[2, 2, 0], runs[*ranks, stage]
    done = STEPS if ranks[0] == ranks[1] else STEPS - EVERY
    found = [step["loss"] for step in show.read_metrics(folder)]
    wanted = [step["loss"] for step in show.read_metrics(reference)]
    assert len(found) == done
    torch.testing.assert_close(found, wanted[-done:], rtol=1e-5, atol=1e-5)
    one, other = (load_file(f / "adapter" / "adapter_model.safetensors") for f in (folder, reference))
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("ranks", [(2, 2), (1, 1)], ids=str)
def test_proof(runs, tiny_model_folder, ranks, stage):
    proof = examine(str(tiny_model_folder), runs[*ranks, stage], "fp32")
    assert proof.passed, proof.faults
    assert proof.max_logit_difference < 1e-5
    assert proof.function_change > 1e-3


def test_checkpoints_of_all_stages_hold_the_same_state(runs):
    """The moments of Adam themselves agree, not only what follows from them."""
    name = checkpoints.name(EVERY)
    for file in (checkpoints.PARAMETERS, checkpoints.OPTIMIZER):
        reference = load_file(runs[2, 2, 0] / CHECKPOINTS / name / file)
        for stage in STAGES:
            for ranks in (1, 2):
                found = load_file(runs[ranks, ranks, stage] / CHECKPOINTS / name / file)
                assert found.keys() == reference.keys()
                for key in found:
                    torch.testing.assert_close(found[key], reference[key], rtol=1e-3, atol=1e-7, msg=key)


@pytest.mark.parametrize("name", [*OTHERS, *SPLIT])
def test_other_optimizers_resume_exactly(runs, name):
    found, wanted = ([step["loss"] for step in show.read_metrics(runs[key])] for key in (f"{name}-again", name))
    assert len(found) == STEPS - EVERY
    torch.testing.assert_close(found, wanted[-len(found) :], rtol=1e-6, atol=1e-6)
    one, other = (load_file(runs[key] / "adapter" / "adapter_model.safetensors") for key in (f"{name}-again", name))
    for key in one:
        torch.testing.assert_close(one[key], other[key], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", SPLIT)
def test_two_rates_are_the_same_at_every_stage(runs, name):
    one, other = (load_file(runs[key] / "adapter" / "adapter_model.safetensors") for key in (name, "lora+"))
    for key in one:
        torch.testing.assert_close(one[key], other[key], rtol=1e-4, atol=1e-5)
