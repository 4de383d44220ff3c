"""The runs that tests look at; ranks are started three times in all, because starting them is what takes long."""

import pytest
from many_runs import killed, torchrun
from stage_jobs import principal_factors, staged, watched
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
    root, model = tmp_path_factory.mktemp("runs"), tiny_model_folder
    names = ("packed", "watched", "watched at ZeRO-3", "watched and killed", "moved base", "one rank")
    folders = {name: root / name for name in names}
    both = [staged(folders, root, model, 2, 2, stage) for stage in (0, 2, 3)]
    both.append(write_job(folders["packed"], job(folders["packed"], model, packing=True)))
    both += [watched(folders["watched"], model), watched(folders["watched at ZeRO-3"], model, zero_stage=3)]
    both.append(killed(watched(folders["watched and killed"], model), folders["watched"], after=10))
    torchrun(2, both)
    alone = [staged(folders, root, model, *who) for who in ((1, 1, 0), (2, 1, 2), (2, 1, 3))]
    factors = principal_factors(model, root / "factors.safetensors")
    one = {"num_processes": 1, "micro_batch_size": 8}
    changes = one | {"initial_factors": factors, "learning_rate": 1e-3}
    alone.append(write_job(folders["moved base"], job(folders["moved base"], model, **changes)))
    changes = one | {"total_steps": 8, "packing": True}
    alone.append(write_job(folders["one rank"], job(folders["one rank"], model, **changes)))
    torchrun(1, alone)
    return folders
