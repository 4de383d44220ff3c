"""An adapter that a choice made trains in somebody's own loop: two ranks give the losses of one process, and of the product's own training."""

import json
import socket
from pathlib import Path

import own_loops
import pytest
import torch.multiprocessing
from recipe_samples import chats, write_jsonl
from training_jobs import job

import lora_select as ls
from lora_select.data.labels.tokens import write_rows
from lora_select.initialization import write_initialization
from lora_select.training.job import METRICS
from lora_select.training.supervisor import launch

QUICK = {"microbatches": 4, "sketch_size": 16, "base_loss_rows": 4, "max_length": 512, "batch_size": 8}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def choice(tiny_model_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("loops")
    write_jsonl(folder / "rows.jsonl", chats(40))
    return ls.recommend(
        str(tiny_model_folder), folder / "rows.jsonl", variant="eva", runs_dir=str(folder / "runs"), **QUICK
    )


def losses(ranks, kind, choice, model):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    torch.multiprocessing.spawn(own_loops.rank, (ranks, port, kind, choice, str(model), results), nprocs=ranks)
    return results.get()


@pytest.fixture(scope="module")
def alone(choice, tiny_model_folder):
    return losses(1, "accelerate", choice, tiny_model_folder)


@pytest.fixture(scope="module")
def own(choice, tiny_model_folder, tmp_path_factory):
    """The product's training of the same adapter on the same rows, two ranks."""
    folder = tmp_path_factory.mktemp("product")
    measured = choice._chosen.measured.spectra
    start = write_initialization(
        choice.spec, tiny_model_folder, measured.folder / measured.record.tensors.path, folder / "start"
    )
    plain = {"total_steps": own_loops.STEPS, "warmup_steps": 0, "lr_schedule": "constant", "max_grad_norm": 1e6}
    plain |= {"learning_rate": own_loops.RATE, "zero_stage": 2}
    told = job(folder, tiny_model_folder, adapter=choice.spec, initial_factors=start, **plain)
    write_rows(Path(told.train_tokens), own_loops.rows())
    launch.train(told, folder)
    return [json.loads(line)["loss"] for line in (folder / METRICS).read_text().splitlines()]


@pytest.mark.parametrize("kind", ["fsdp", "accelerate", "deepspeed"])
def test_two_ranks_have_the_losses_of_one(kind, choice, alone, tiny_model_folder):
    assert losses(2, kind, choice, tiny_model_folder) == pytest.approx(alone, rel=1e-4)
    assert alone[-1] < alone[0] - 0.02


def test_they_are_the_losses_of_the_products_own_training(alone, own):
    assert own == pytest.approx(alone, rel=1e-4)
