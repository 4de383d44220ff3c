"""An adapter that a choice made trains in somebody's own loop: two ranks under FSDP or accelerate give one process's losses."""

import socket

import own_loops
import pytest
import torch.multiprocessing
from recipe_samples import chats, write_jsonl

import lora_select as ls

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


@pytest.mark.parametrize("kind", ["fsdp", "accelerate"])
def test_two_ranks_have_the_losses_of_one(kind, choice, alone, tiny_model_folder):
    assert losses(2, kind, choice, tiny_model_folder) == pytest.approx(alone, rel=1e-4)
    assert alone[-1] < alone[0] - 0.02
