"""Shared fixtures: a tiny random Llama with a byte-level tokenizer, in Hugging Face layout, made in a second; a migrated MLflow store."""

import gc
import shutil
import signal
from pathlib import Path

import pytest
from byte_tokenizer import byte_tokenizer

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell's background jobs ignore it, and so would all that the tests start and interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)

collect_ignore_glob = ["*conftest.py", "peers/in_*.py"]
"""No doctests there: conftests share one module name, and the scripts import what only other environments hold."""
LONG = ("tests/training/", "tests/flows/", "tests/pipeline/test_retaining.py", "tests/server/", "tests/faults/")
"""What takes longest begins first, so that two workers end together."""
RANKS = (
    "tests/training/test_nodes.py",
    "tests/training/test_ranks_and_stages.py",
    "tests/training/test_training_runs.py",
    "tests/training/test_trials.py",
    "tests/training/test_validation.py",
)
"""Files that look at the same runs of real ranks: one worker makes them."""


@pytest.hookimpl(tryfirst=True, optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log):
    """Give each worker of `pytest -n` whole files, so that what a file shares is made once."""
    from xdist.scheduler import LoadScopeScheduling

    class WholeFiles(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "ranks" if file in RANKS else file

    return WholeFiles(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order nothing but what takes longest; what is collected lives to the end, so no `gc.collect()` of the code need look at it."""
    items.sort(key=lambda item: not item.nodeid.startswith(LONG))
    gc.freeze()


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory) -> Path:
    """A Llama of 2 layers, width 64, GQA 4/2, vocabulary 260, random weights with seed 0."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny-llama")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=260,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def template(tmp_path_factory) -> Path:
    """One migrated SQLite store per session, copied for each test: a fresh migration costs seconds."""
    from lora_select.tracking.store import prepare

    folder = tmp_path_factory.mktemp("mlflow-template")
    prepare(f"sqlite:///{folder}/mlflow.db")
    return folder / "mlflow.db"


@pytest.fixture
def database(template, tmp_path) -> Path:
    """A migrated database of the test's own."""
    return Path(shutil.copy(template, tmp_path / "mlflow.db"))


@pytest.fixture
def store(database):
    """Its experiment is the test's own: the template's one would put artifacts beside the template."""
    from lora_select.tracking.store import prepare

    return prepare(f"sqlite:///{database}", "test")
