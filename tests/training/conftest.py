"""The run that others are compared with."""

import pytest
from training_jobs import job

from lora_select.training import launch


@pytest.fixture(scope="session")
def reference(tmp_path_factory, tiny_model_folder):
    """`(folder, adapter)` of an uninterrupted run of two ranks."""
    folder = tmp_path_factory.mktemp("reference")
    return folder, launch.train(job(folder, tiny_model_folder), folder)
