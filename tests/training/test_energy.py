"""What was measured while ranks trained is part of the adapter's record, also after a kill."""

import mlflow_samples as samples

from lora_select import records
from lora_select.records import Energy
from lora_select.training import energy, job
from lora_select.training.supervisor import launch


def test_a_finished_training_says_what_its_folder_measured(tmp_path):
    records.write(tmp_path / job.RESULT, samples.adapter(tmp_path))
    found = launch.finished(tmp_path)
    assert found is not None
    assert found.energy is None
    used = Energy(0.25, "measured", "counters of GPU 0 (whole devices, other load included)")
    records.write(tmp_path / energy.FILE, used)
    found = launch.finished(tmp_path)
    assert found is not None
    assert found.energy == used
