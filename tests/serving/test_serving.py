"""What each engine takes and refuses, and what is read off a PEFT folder."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from lora_select import serving
from lora_select.errors import InputError
from lora_select.serving import ENGINES, ServedAdapter
from lora_select.variants import VARIANTS, named
from lora_select.variants.base import served

PLAIN = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "bias": "none"}
LAYER = "model.layers.0.self_attn.q_proj"


def write_folder(path, *, config=None, tensors=None, r=4):
    path.mkdir(exist_ok=True)
    (path / "adapter_config.json").write_text(json.dumps(PLAIN | (config or {})))
    found = {
        f"base_model.model.{LAYER}.lora_A.weight": torch.ones(r, 6),
        f"base_model.model.{LAYER}.lora_B.weight": torch.ones(5, r),
    }
    save_file(found | (tensors or {}), path / "adapter_model.safetensors")
    return serving.read_folder(path)


def test_every_engine_says_what_it_is():
    assert set(ENGINES) == {"vllm", "sglang", "llama.cpp", "ollama", "mlx", "merged"}
    assert {engine.form for engine in ENGINES.values()} == {"lora", "gguf", "mlx", "merged"}
    assert all(name == engine.name and engine.checked for name, engine in ENGINES.items())


@pytest.mark.parametrize(
    ("rank", "slot"), [(1, 1), (2, 8), (16, 16), (17, 32), (32, 32), (33, 64), (257, 320), (512, 512)]
)
def test_vllm_is_told_a_slot_that_holds_the_rank(tmp_path, rank, slot):
    command = serving.serve_command("vllm", tmp_path, "org/model", rank).split()
    assert command[command.index("--max-lora-rank") + 1] == str(slot)
    assert ENGINES["vllm"].slot(rank) == slot


def test_what_is_refused_before_training_by_engine_and_variant():
    """Engines of adapters take what is plain LoRA exactly; merged takes whatever merges."""
    lora_like = {kind.name for kind in VARIANTS if kind.support.plain_lora} | {"miss", "delora", "psoft"}
    variants = [named(kind.name, 8) for kind in VARIANTS]
    for engine in ("vllm", "sglang", "llama.cpp", "ollama", "mlx"):
        taken = {variant.name for variant in variants if not serving.unsupported(engine, served(variant))}
        assert taken == lora_like
    merged = {variant.name for variant in variants if not serving.unsupported("merged", served(variant))}
    assert merged == {kind.name for kind in VARIANTS if kind.support.merge}
    assert serving.unsupported("merged", ServedAdapter("lora", 8, merges=True, quantized_base="nf4"))


def test_a_start_that_changes_the_base_is_served_at_twice_its_rank():
    assert served(named("pissa", 300)).rank == 600
    assert "600" in serving.unsupported("vllm", served(named("pissa", 300)))[0]
    assert not serving.unsupported("sglang", served(named("pissa", 300)))


def test_a_base_that_cannot_become_gguf_is_refused_with_the_way_out():
    assert not serving.unsupported_base("llama.cpp", "LlamaForCausalLM")
    assert not serving.unsupported_base("vllm", "GPT2LMHeadModel")
    for engine in ("llama.cpp", "ollama"):
        (sentence,) = serving.unsupported_base(engine, "GPT2LMHeadModel")
        assert "GPT2LMHeadModel" in sentence
        assert "--serve merged" in sentence


def test_a_plain_folder_has_no_fault_and_no_warning(tmp_path):
    folder = write_folder(tmp_path / "a")
    assert serving.faults(folder) == ()
    assert serving.warnings(folder) == ()
    assert (folder.rank(LAYER), folder.scale(LAYER), folder.layers()) == (4, 2.0, (LAYER,))


def test_patterns_are_read_by_pefts_rule(tmp_path):
    config = {"rank_pattern": {"v_proj": 2, "self_attn.q_proj": 3}, "alpha_pattern": {"q_proj": 6}}
    folder = write_folder(tmp_path / "a", config=config, r=3)
    assert (folder.rank(LAYER), folder.scale(LAYER)) == (3, 2.0)
    assert folder.rank("model.layers.0.self_attn.k_proj") == 4
    assert replace(folder, config=folder.config | {"use_rslora": True}).scale(LAYER) == pytest.approx(6 / 3**0.5)
    assert serving.faults(folder) == ()


@pytest.mark.parametrize(
    ("config", "field", "dropped", "refused"),
    [
        ({"use_rslora": True}, "use_rslora", {"sglang", "llama.cpp", "ollama"}, set()),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern", {"vllm", "sglang"}, set()),
        ({"use_dora": True}, "use_dora", set(), {"vllm", "sglang", "llama.cpp", "ollama", "mlx"}),
        ({"init_lora_weights": "pissa"}, "init_lora_weights", {"sglang", "llama.cpp", "ollama"}, {"vllm"}),
        ({"lora_alpha": 7.5}, "lora_alpha", {"ollama"}, set()),
        ({"target_modules": r".*\.q_proj"}, "target_modules", set(), {"sglang"}),
        ({"layer_replication": [[0, 1]]}, "layer_replication", set(), {"vllm"}),
        ({"peft_type": "MISS"}, "peft_type", set(), {"vllm", "sglang", "llama.cpp", "ollama", "mlx"}),
    ],
)
def test_a_folder_that_is_not_in_the_safe_form_names_who_drops_and_who_refuses(
    tmp_path, config, field, dropped, refused
):
    folder = write_folder(tmp_path / "a", config=config)
    assert set(serving.departures(folder)) == {field}
    assert {name for name, engine in ENGINES.items() if field in engine.ignores} == dropped
    assert {name for name, engine in ENGINES.items() if field in engine.refuses} == refused
    (line,) = serving.warnings(folder)
    assert all(ENGINES[name].title in line for name in dropped | refused)


@pytest.mark.parametrize(
    ("config", "tensors", "r", "named_in_it"),
    [
        ({"use_foo": True}, {}, 4, "use_foo"),
        ({}, {}, 3, f"{LAYER} has factors of rank 3 and 3"),
        ({"target_modules": ["v_proj"]}, {}, 4, f"{LAYER} has factors, and `target_modules`"),
        ({}, {"base_model.model.lm_head.weight": torch.ones(2, 2)}, 4, "lm_head.weight"),
        ({}, {"base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight": torch.ones(4, 6)}, 4, "factor A alone"),
    ],
)
def test_an_unsound_folder_is_named(tmp_path, config, tensors, r, named_in_it):
    found = serving.faults(write_folder(tmp_path / "a", config=config, tensors=tensors, r=r))
    assert len(found) == 1
    assert named_in_it in found[0]


@pytest.mark.parametrize(
    ("config", "named_in_it"),
    [({"modules_to_save": ["lm_head"]}, "lm_head"), ({"trainable_token_indices": [3]}, "trainable_token_indices")],
)
def test_what_was_trained_beside_the_adapter_is_named(tmp_path, config, named_in_it):
    folder = write_folder(tmp_path / "a", config=config)
    assert serving.faults(folder) == ()
    [found] = serving.beside(folder)
    assert named_in_it in found


@pytest.mark.parametrize(
    ("variant", "engine", "words"),
    [
        ("lora", None, []),
        ("lora", "llama.cpp", []),
        ("rslora", None, ["SGLang, llama.cpp, Ollama"]),
        ("rslora", "vllm", []),
        ("dora", "sglang", ["DoRA's magnitudes"]),
        ("miss", None, ["it is MISS"]),
        ("pissa", "vllm", ["its start (pissa)"]),
    ],
)
def test_a_folder_that_is_not_trained_yet_is_judged_by_its_config(variant, engine, words):
    import peft

    made = named(variant, 8)
    config = getattr(peft, made.peft_class)(**made.peft_arguments(), target_modules=["q_proj"]).to_dict()
    if variant == "pissa":
        config["init_lora_weights"] = "pissa"
    found = serving.warnings_before(config, engine)
    assert len(found) == len(words)
    assert all(word in line for word, line in zip(words, found, strict=True))


def test_an_adapted_embedding_is_named_and_the_weight_that_peft_saves_beside_it_is_no_fault(tmp_path):
    embedding = "base_model.model.model.embed_tokens"
    tensors = {f"{embedding}.lora_embedding_A": torch.ones(4, 9), f"{embedding}.lora_embedding_B": torch.ones(6, 4)}
    tensors[f"{embedding}.base_layer.weight"] = torch.ones(9, 6)
    folder = write_folder(tmp_path / "a", config={"target_modules": ["q_proj", "embed_tokens"]}, tensors=tensors)
    assert serving.faults(folder) == ()
    [found] = serving.beside(folder)
    assert "model.embed_tokens" in found
    [line] = serving.warnings(folder)
    assert "--to merged" in line


def test_a_default_of_a_newer_peft_is_no_fault(tmp_path):
    assert serving.faults(write_folder(tmp_path / "a", config={"use_newer": False, "newer_config": None})) == ()


def test_folders_that_cannot_be_read_are_sentences(tmp_path):
    with pytest.raises(InputError, match="holds no adapter"):
        serving.read_folder(tmp_path)
    write_folder(tmp_path / "a")
    (tmp_path / "a" / "adapter_model.safetensors").write_bytes(b"\xff" * 20)
    with pytest.raises(InputError, match="is no safetensors file"):
        serving.read_folder(tmp_path / "a")
    (tmp_path / "a" / "adapter_model.safetensors").unlink()
    (tmp_path / "a" / "adapter_model.bin").write_bytes(b"x")
    with pytest.raises(InputError, match="pickles are never read"):
        serving.read_folder(tmp_path / "a")
    (tmp_path / "a" / "adapter_config.json").write_text("{")
    with pytest.raises(InputError, match="is not valid JSON"):
        serving.read_folder(tmp_path / "a")


def test_before_training_the_steps_to_a_server_are_named():
    export, command = serving.steps("vllm", served(named("lora", 32)), "org/model")
    assert "--serve vllm" in export
    assert "--max-lora-rank 32" in command
    assert serving.steps(None, served(named("lora", 32)), "org/model") == ()
