"""The forecast in the training stage; the steps of a training are written by the test in place of ranks."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from lora_select import records
from lora_select.pipeline.stages import train
from lora_select.records import Adapter, DatasetProfile, Spectra, TrainingPlan
from lora_select.selection.calibration import Curve, shipped
from lora_select.training import job
from lora_select.training.supervisor import launch

EARLIER = Path(__file__).parent / "earlier_run"
FILES = {DatasetProfile: "profile", Spectra: "spectra", TrainingPlan: "plan"}
CURVE = Curve(start=0.2, slope=0.8, sd=0.01, settings=12, runs=40, lost=(0.1, 0.9), steps=(1, 100))


@pytest.mark.parametrize("share", [0.5, 0.01])
def test_it_is_said_once_while_the_steps_go_on_and_kept_in_the_record(monkeypatch, tmp_path, share):
    """Half of the base loss gone at the quarter tells 0.2 + 0.8 / 2; a hundredth is less than any training had that gave the constants."""
    made = {kind: records.read(kind, EARLIER / f"{name}.json") for kind, name in FILES.items()}
    base, steps = made[DatasetProfile].base_loss, made[TrainingPlan].total_steps

    def ranks(_job, folder, *, progress):
        for step in range(1, steps + 1):
            with (folder / job.METRICS).open("a") as file:
                file.write(json.dumps({"step": step, "loss": base * (1 - share)}) + "\n")
            progress(step, steps, "")
        return records.read(Adapter, EARLIER / "adapter.json")

    said: list[str] = []
    context = SimpleNamespace(
        folder=tmp_path,
        load=lambda _ref, kind: made[kind],
        folder_of=lambda _ref: EARLIER,
        report=lambda *_: None,
        place=SimpleNamespace(say=said.append),
    )
    monkeypatch.setattr(launch, "train", ranks)
    monkeypatch.setattr(train, "check_disk", lambda *_: None)
    monkeypatch.setattr(train, "shipped", lambda: dataclasses.replace(shipped(), curve=CURVE))
    found = train.train.compute(
        context, profile=None, spectra=None, plan=None, base=SimpleNamespace(path="", source=""), spec=made_spec()
    )
    if share < 0.1:
        assert (found.forecast, said) == (None, [])
    else:
        assert found.forecast.value == pytest.approx(base * 0.6)
        [line] = said
        assert line.startswith(f"at {found.forecast.source} the held-out loss is on its way from {base:.2f}")


def made_spec():
    return records.read(Adapter, EARLIER / "adapter.json").spec
