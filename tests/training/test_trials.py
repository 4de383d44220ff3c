"""Probes: the same training as the ranks', on a base that is left as it was."""

import pytest
import torch
import training_jobs

from lora_select import models
from lora_select.data.labels.tokens import read_rows
from lora_select.initialization import write_initialization
from lora_select.records import Trial, from_json
from lora_select.selection.race import Entrant, RacePlan
from lora_select.training import trials
from lora_select.training.job import JOB, read_job
from lora_select.training.supervisor import metrics_file
from lora_select.training.worker import batches

STEPS = 8


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.fixture
def base(tiny_model_folder):
    return models.load_model(str(tiny_model_folder))


def plan(**changes):
    return training_jobs.plan(num_processes=1, micro_batch_size=8, total_steps=STEPS, **changes)


def test_a_probe_takes_the_steps_that_a_deepspeed_rank_takes(runs, base):
    folder = runs["one rank"]
    told = read_job(folder / JOB)
    ranks = [step["loss"] for step in metrics_file.read_metrics(folder)]
    assert len(ranks) == STEPS
    with trials.adapted(base, told.spec, told.plan) as network:
        ours = trials.train(network, told.spec, told.plan, read_rows(folder / "train.parquet"), pad_id=3)
    assert ours == pytest.approx(ranks, rel=1e-5)
    assert ours[-1] < ours[0]


@pytest.mark.parametrize("init", ["default", "pissa"])
def test_the_base_is_left_bit_for_bit(tmp_path, tiny_model_folder, base, init):
    """PiSSA takes its start off the base's weights meanwhile."""
    before = weights(base)
    spec = training_jobs.spec(init=init)
    factors = write_initialization(spec, tiny_model_folder, tmp_path / "none", tmp_path / "factors.safetensors")
    with trials.adapted(base, spec, plan(), str(factors) if factors else None) as network:
        changed = [n for n, p in base.named_parameters() if n in before and not torch.equal(p, before[n])]
        inside = [n for n, p in network.named_parameters() if "base_layer" in n]
        assert bool(changed or inside)
        trials.train(network, spec, plan(), training_jobs.rows(64), pad_id=3)
    after = weights(base)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert type(base.get_output_embeddings()) is torch.nn.Linear


def test_a_run_that_diverges_ends_and_says_so(base):
    spec = training_jobs.spec()
    wild = plan(learning_rate=1e30)
    with trials.adapted(base, spec, wild) as network:
        losses = trials.train(network, spec, wild, training_jobs.rows(64), pad_id=3)
    assert len(losses) < STEPS


def run(folder, model, rows, **changes):
    spec = training_jobs.spec()
    wanted = RacePlan((Entrant("lora-all-linear-r4", spec, (1e-3, 3e-3, 1e30)),), (4, 8), ())
    material = trials.Material(str(model), folder / "none", rows, None, 0)
    return trials.run(wanted, plan(), material, folder=folder, digests=("p", "s"), budget=2.0, **changes)


def test_a_race_drops_what_diverged_and_trains_on_no_row_that_it_compares_on(tmp_path, tiny_model_folder):
    rows = training_jobs.rows(100)
    made = run(tmp_path, tiny_model_folder, rows)
    assert [(p.learning_rate, p.steps) for p in made.probes] == [(1e-3, 4), (3e-3, 4), (1e30, 4), (1e-3, 8), (3e-3, 8)]
    assert "diverged" in made.dropped["lora-all-linear-r4 1e+30"]
    train, held_out = trials.split(rows, 0)
    assert len(made.labels) == len(held_out) == 20
    assert not {row.row_id for row in train} & {row.row_id for row in held_out}
    numbers = [n for step in range(STEPS) for n in batches.rows_of_step(len(rows), 1.0, 8, 0, step)]
    full = sum(len(rows[number].input_ids) for number in numbers)  # of the planned steps, not of an epoch
    assert made.cost == pytest.approx(sum(p.tokens for p in made.probes) / full, abs=1e-3)
    assert sum(made.probes[-1].held_out) < sum(made.base_held_out)


def test_a_killed_race_goes_on_after_its_last_whole_probe(tmp_path, tiny_model_folder):
    rows = training_jobs.rows(100)
    first = run(tmp_path, tiny_model_folder, rows)
    file = tmp_path / trials.PROBES
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:2]) + lines[2][:40])  # killed in the middle of a write
    kept = [from_json(Trial, line) for line in lines[:2]]
    seen = []
    again = run(tmp_path, tiny_model_folder, rows, progress=lambda done, total, what: seen.append(what))
    assert [p.seconds for p in again.probes[:2]] == [p.seconds for p in kept]
    assert [p.held_out for p in again.probes] == [p.held_out for p in first.probes]
    assert len(file.read_text().splitlines()) == 5


def test_an_entrant_whose_start_cannot_be_made_is_named_and_the_others_race(tmp_path, tiny_model_folder):
    eva = training_jobs.spec(variant="eva", init="eva")
    home = Entrant("lora-all-linear-r4", training_jobs.spec(), (1e-3,))
    wanted = RacePlan((home, Entrant("eva-all-linear-r4", eva, (1e-3,))), (4,), ())
    material = trials.Material(str(tiny_model_folder), tmp_path / "none", training_jobs.rows(100), None, 0)
    (tmp_path / "none").write_bytes(b"")
    with pytest.raises(Exception, match="header"):
        trials.run(wanted, plan(), material, folder=tmp_path, digests=("p", "s"), budget=2.0)
    from safetensors.torch import save_file

    save_file({"other": torch.zeros(1)}, tmp_path / "none")
    made = trials.run(wanted, plan(), material, folder=tmp_path, digests=("p", "s"), budget=2.0)
    assert [p.key for p in made.probes] == ["lora-all-linear-r4"]
    assert "eva" in made.dropped["eva-all-linear-r4 0.001"]


def test_too_few_rows_are_refused(tmp_path, tiny_model_folder):
    with pytest.raises(Exception, match="30 rows are too few"):
        run(tmp_path, tiny_model_folder, training_jobs.rows(30))
