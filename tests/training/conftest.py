"""The runs that tests look at; ranks are started three times in all, because starting them is what takes long."""

import pytest
from many_runs import torchrun
from stage_jobs import principal_factors, staged
from training_jobs import job

from lora_select.training.job import write_job
from lora_select.training.supervisor import launch


@pytest.fixture(scope="session")
def reference(tmp_path_factory, tiny_model_folder):
    """`(folder, adapter)` of an uninterrupted run of two ranks."""
    folder = tmp_path_factory.mktemp("reference")
    return folder, launch.train(job(folder, tiny_model_folder), folder)


@pytest.fixture(scope="session")
def runs(tmp_path_factory, tiny_model_folder):
    """Folders by name; `(ranks that saved, ranks that finished, stage)` names those of :func:`staged`."""
    root = tmp_path_factory.mktemp("runs")
    folders = {}
    both = [staged(folders, root, tiny_model_folder, 2, 2, stage) for stage in (0, 2, 3)]
    folders["packed"] = root / "packed"
    both.append(write_job(folders["packed"], job(folders["packed"], tiny_model_folder, packing=True)))
    torchrun(2, both)
    alone = [staged(folders, root, tiny_model_folder, *who) for who in ((1, 1, 0), (2, 1, 2), (2, 1, 3))]
    folders["moved base"] = root / "moved"
    factors = principal_factors(tiny_model_folder, root / "factors.safetensors")
    changes = {"initial_factors": factors, "num_processes": 1, "micro_batch_size": 8, "learning_rate": 1e-3}
    alone.append(write_job(folders["moved base"], job(folders["moved base"], tiny_model_folder, **changes)))
    torchrun(1, alone)
    return folders
