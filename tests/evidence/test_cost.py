"""Cost: operations against a count of a real model's own multiplications, hours and energy against arithmetic, prices checked."""

import dataclasses
import math

import mlflow_samples as samples
import pytest

from lora_select import records
from lora_select.errors import InputError
from lora_select.evidence import cost
from lora_select.training import energy


@pytest.fixture
def parts(tmp_path):
    adapter, profile, plan = samples.adapter(tmp_path), samples.profile(tmp_path), samples.plan()
    base = records.BaseModel("m", None, "", samples.SHA, "Llama", 100_000_000, 10, 512, 1000, True, None)
    return plan, adapter, base, profile


def test_operations_are_those_that_torch_counts(tiny_model_folder):
    """The tiny Llama with LoRA, one row forward and back; eager attention multiplies the masked half too, hence twice the length."""
    import torch
    from peft import LoraConfig, get_peft_model
    from torch.utils.flop_counter import FlopCounterMode

    from lora_select import models

    loaded = models.load_model(str(tiny_model_folder))
    loaded.set_attn_implementation("eager")
    model = get_peft_model(loaded, LoraConfig(r=4, target_modules="all-linear"))
    ids = torch.randint(0, 250, (1, 128))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids).loss.backward()
    base = models.resolve(str(tiny_model_folder), cache=tiny_model_folder.parent / "cache")
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert counter.get_total_flops() == pytest.approx(cost.training_flops(base, trainable, 128, 2 * 128), rel=0.1)
    assert counter.get_total_flops() != pytest.approx(cost.training_flops(base, trainable, 128, 0), rel=0.1)


def test_checkpointing_costs_a_forward_pass_more(parts):
    _, _, base, _ = parts
    once = cost.training_flops(base, 0, 1000, 0.0)
    assert once == 4 * 1e8 * 1000
    assert cost.training_flops(base, 0, 1000, 0.0, recompute=True) == 6 * 1e8 * 1000


def test_hours_energy_and_money(parts):
    plan, adapter, base, profile = parts
    prices = cost.Prices(per_device_hour=2.0, per_kwh=0.5, watts=100.0)
    found = cost.measured(plan, adapter, base, profile, prices=prices)
    hours = adapter.seconds / 3600
    assert found.hours == pytest.approx(hours)
    assert found.energy == records.Energy(pytest.approx(hours * 2 * 0.1), "estimated", found.energy.basis)
    assert found.money == pytest.approx(2.0 * hours + 0.5 * found.energy.kwh)
    known = cost.measured(plan, adapter, base, profile, records.Energy(1.5, "measured", "counters"), prices)
    assert (known.energy.kwh, known.energy.source) == (1.5, "measured")
    assert cost.measured(plan, adapter, base, profile).money is None
    gpus = dataclasses.replace(plan, device="cuda", num_processes=4)
    assert cost.measured(gpus, adapter, base, profile, prices=prices).device_hours == pytest.approx(4 * hours)


def test_the_plan_is_priced_before_anything_is_trained(parts):
    plan, _, base, profile = parts
    found = cost.planned(plan, base, profile, 1_000_000)
    assert found.when == "planned"
    assert found.hours == pytest.approx(plan.minutes.expected / 60)
    tokens = profile.train.tokens * plan.total_steps * plan.effective_batch_size / profile.train.rows
    assert found.flops == pytest.approx(cost.training_flops(base, 1_000_000, round(tokens), profile.train.length.mean))


@pytest.mark.parametrize("arguments", [{"per_kwh": -1.0}, {"per_device_hour": math.nan}, {"watts": math.inf}])
def test_prices_that_are_none(arguments):
    with pytest.raises(InputError, match=next(iter(arguments))):
        cost.Prices(**arguments)


def counters(folder, value, name="package-0", top=1_000_000_000):
    place = folder / "intel-rapl:0"
    (place / "intel-rapl:0:0").mkdir(parents=True, exist_ok=True)
    (folder / "intel-rapl:0:0").mkdir(exist_ok=True)
    for file, text in (("name", name), ("energy_uj", str(value)), ("max_energy_range_uj", str(top))):
        (place / file).write_text(f"{text}\n")
        (folder / "intel-rapl:0:0" / file).write_text("7\n")
    return folder


def test_counters_of_the_processor_are_subtracted_and_wrap(tmp_path):
    before = energy.read(counters(tmp_path, 900_000_000))
    assert before.joules["processor package-0"] == 900.0
    after = energy.read(counters(tmp_path, 100_000_000))
    used = energy.between(before, after)
    assert used is not None
    assert used.source == "measured"
    processor = {"joules": {"p": 900.0}, "wraps": {"p": 1000.0}}
    wrapped = energy.between(energy.Reading(**processor), energy.Reading({"p": 100.0}, {"p": 1000.0}))
    assert wrapped is not None
    assert wrapped.kwh * 3.6e6 == pytest.approx(200.0)


def test_a_machine_that_tells_nothing_claims_nothing(tmp_path):
    assert not any(name.startswith("processor") for name in energy.read(tmp_path).joules)
    assert energy.between(energy.Reading(), energy.Reading({"p": 1.0}, {"p": 0.0})) is None
    half = records.Energy(1.0, "measured", "c")
    assert energy.add(None, half) == half
    assert energy.add(half, half) == records.Energy(2.0, "measured", "c")


def test_a_meter_adds_over_attempts_and_starts_and_writes_nothing_where_nothing_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(energy, "_graphics", dict)
    rapl, folder = tmp_path / "rapl", tmp_path / "train"
    folder.mkdir()
    energy.Meter(folder, tmp_path / "none").tick(now=True)
    assert energy.used(folder) is None
    meter = energy.Meter(folder, counters(rapl, 100_000_000))
    counters(rapl, 400_000_000)
    meter.tick()  # too early
    assert energy.used(folder) is None
    meter.tick(now=True)
    counters(rapl, 700_000_000)  # between two starts: not the training's
    again = energy.Meter(folder, rapl)
    counters(rapl, 200_000_000)  # wrapped at 1,000
    again.tick(now=True)
    found = energy.used(folder)
    assert found is not None
    assert found.kwh * 3.6e6 == pytest.approx(300.0 + 500.0)
    assert (found.source, found.basis) == (
        "measured",
        "counters of processor package-0 (whole devices, other load included)",
    )
