"""Base models are found, identified by content, and refused in one sentence when they cannot be used."""

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from lora_select import models
from lora_select.errors import InputError, WorldError
from lora_select.models import gguf


@pytest.fixture
def copied(tmp_path, tiny_model_folder):
    return shutil.copytree(tiny_model_folder, tmp_path / "model")


def resolve(source, tmp_path):
    return models.resolve(str(source), cache=tmp_path / "cache")


def test_identity_is_content_not_place(tmp_path, copied, tiny_model_folder):
    here, there = resolve(copied, tmp_path), resolve(tiny_model_folder, tmp_path)
    assert here.digest == there.digest
    assert here.path != there.path
    assert (here.architecture, here.num_hidden_layers, here.hidden_size) == ("LlamaForCausalLM", 2, 64)
    assert here.num_parameters == sum(p.numel() for p in models.load_model(here.path).parameters())
    assert here.has_chat_template
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"rope_theta": 7.0}))
    assert resolve(copied, tmp_path).digest != here.digest


def test_faults_are_one_sentence_with_a_way_out(tmp_path, copied):
    def fails(words):
        with pytest.raises(InputError, match=words):
            resolve(copied, tmp_path)

    config = (copied / "config.json").read_text()
    (copied / "config.json").write_text(json.dumps(json.loads(config) | {"auto_map": {"AutoModel": "x.Y"}}))
    fails("remote code is never run")
    (copied / "config.json").write_text("{")
    fails("not valid JSON")
    (copied / "config.json").write_text(config)
    (copied / "tokenizer.json").unlink()
    fails("has no tokenizer")
    (copied / "model.safetensors").rename(copied / "pytorch_model.bin")
    fails("pickled weights are never read")
    (copied / "config.json").unlink()
    fails("no config.json")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("sample:gpt9", "samples: smollm2-135m-instruct"),
        ("./nowhere", "no model folder"),
        ("not a hub id!", "neither a folder"),
    ],
)
def test_unknown_sources(tmp_path, source, words):
    with pytest.raises(InputError, match=words):
        resolve(source, tmp_path)


def test_a_cache_that_takes_nothing_is_said_with_the_way_out(tmp_path, tiny_model_folder, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("LORA_SELECT_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(WorldError, match=r"cannot be written \(Not a directory\); set LORA_SELECT_CACHE"):
        models.resolve(str(tiny_model_folder))


def test_hub_out_of_reach_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="the hub cannot be reached|the hub has no model"):
        resolve("someone/some-model", tmp_path)


def test_two_that_dequantise_the_same_file_at_once_both_get_it(tmp_path, monkeypatch):
    file, both_wrote = tmp_path / "one.gguf", threading.Barrier(2)
    file.write_bytes(b"weights")

    def dequantise(_gguf, folder):
        (folder / "config.json").write_text("{}")
        both_wrote.wait(60)

    monkeypatch.setattr(gguf, "dequantise", dequantise)
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(lambda _: gguf.dequantised(file, tmp_path / "cache"), range(2))
    assert one == other
    assert [place.name for place in one.parent.iterdir()] == [one.name]


def test_gguf_of_unknown_architecture_leaves_nothing_behind(tmp_path):
    import numpy as np
    from gguf import GGUFWriter

    file = tmp_path / "odd.gguf"
    writer = GGUFWriter(file, "oddnet")
    writer.add_block_count(1)
    writer.add_tensor("token_embd.weight", np.zeros((4, 4), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(InputError, match=r"odd.gguf cannot be read: .*use the model's safetensors folder"):
        resolve(file, tmp_path)
    assert list((tmp_path / "cache" / "models").iterdir()) == []
