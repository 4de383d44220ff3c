"""The forms that engines get: the safe LoRA, GGUF and MLX-LM's layout, each with the function of the adapter."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_export import MODULES, adapter, logits, served

from lora_select import models, serving
from lora_select.cli.main import main
from lora_select.errors import InputError, WorldError
from lora_select.export.command import _convert, export
from lora_select.export.gguf_format import check_base, interleaved, write_gguf
from lora_select.export.mlx_format import write_mlx

ASKED = {"rank": None, "max_error": 1e-2}


def saved(model_folder, folder, name, r=4, **changes):
    """An adapter's PEFT folder with its function moved away from the start, and its logits."""
    model = adapter(model_folder, name, r, **changes)
    model.save_pretrained(str(folder))
    return folder, logits(model)


def converted(folder, base, out, max_error=1e-5):
    """The safe form without the new process that checks it, which the tests of whole exports start."""
    model = models.with_adapter(models.load_model(str(base)), folder)
    return _convert(serving.read_folder(folder), model, base, out, str(base), None, max_error)


def test_plain_lora_keeps_its_rank_exactly_whatever_its_directions_hold(tiny_model_folder, tmp_path):
    """A direction of no energy is the adapter's too: r 32 stays 32, where singular values would say less."""
    model = adapter(tiny_model_folder, "lora", 32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter[:, 20:] = 0
    model.save_pretrained(str(tmp_path / "peft"))
    made = export(tmp_path / "peft", None, tmp_path / "out", serve="vllm", **ASKED)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    facts = json.loads((tmp_path / "out" / "export.json").read_text())
    assert (made.form, made.rank, config["r"], config["lora_alpha"]) == ("lora", 32, 32, 32)
    assert (facts["serve"], facts["to"]) == ("vllm", "lora")
    assert sorted(config["target_modules"]) == sorted(MODULES)
    assert not made.warnings
    assert "--max-lora-rank 32" in (made.command or "")
    torch.testing.assert_close(logits(served(tiny_model_folder, tmp_path / "out")), logits(model), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "changes", "rank", "warned"),
    [
        ("rslora", {}, 4, ["rsLoRA"]),
        (
            "lora",
            {"rank_pattern": {"q_proj": 6}, "alpha_pattern": {"q_proj": 20}},
            6,
            ["rank_pattern", "alpha_pattern"],
        ),
        ("lora", {"layers_to_transform": [1]}, 4, []),
        ("lora", {"target_modules": r".*\.[qv]_proj"}, 4, ["target_modules"]),
        ("pissa", {"init_lora_weights": "pissa"}, 8, ["pissa"]),
        ("olora", {"init_lora_weights": "olora"}, 8, ["olora"]),
        ("miss", {}, 4, ["MISS"]),
    ],
)
def test_every_folder_becomes_the_safe_form_with_its_function(tiny_model_folder, tmp_path, name, changes, rank, warned):
    folder, before = saved(tiny_model_folder, tmp_path / "peft", name, **changes)
    made = converted(folder, tiny_model_folder, tmp_path / "out")
    found = serving.warnings(serving.read_folder(folder))
    assert (made.rank, made.method) == (rank, "exact")
    assert len(found) == len(warned)
    assert all(word in line for word, line in zip(warned, found, strict=True))
    torch.testing.assert_close(logits(served(tiny_model_folder, tmp_path / "out")), before, rtol=1e-3, atol=1e-3)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings", "ignore:Setting `save_embedding_layers`")
def test_the_weight_that_peft_saves_beside_an_adapted_head_is_left_out(tiny_model_folder, tmp_path):
    folder, before = saved(tiny_model_folder, tmp_path / "peft", "lora", target_modules=["q_proj", "lm_head"])
    assert any("base_layer" in name for name in serving.read_folder(folder).shapes)
    made = converted(folder, tiny_model_folder, tmp_path / "out")
    assert (made.rank, made.method) == (4, "exact")
    assert not any("base_layer" in name for name in serving.read_folder(tmp_path / "out").shapes)
    exported = models.with_adapter(models.load_model(str(tiny_model_folder)), tmp_path / "out")
    torch.testing.assert_close(logits(exported), before, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_ollama_gets_a_gguf_and_a_modelfile_through_the_command(tiny_model_folder, tmp_path, capsys):
    folder, _ = saved(tiny_model_folder, tmp_path / "peft", "rslora")
    with pytest.raises(InputError, match="leave --to out"):
        export(folder, "merged", tmp_path / "no", serve="vllm", **ASKED)
    assert main(["export", str(folder), "--serve", "ollama", "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "ollama create" in printed
    assert "rsLoRA" in printed
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"adapter.gguf", "Modelfile", "export.json"}
    lines = (tmp_path / "out" / "Modelfile").read_text().splitlines()
    assert lines == [f"FROM {tiny_model_folder}", "ADAPTER ./adapter.gguf"]


def test_gguf_holds_the_factors_under_llama_cpps_names_and_order(tiny_model_folder, tmp_path):
    from gguf import GGUFReader

    folder, _ = saved(tiny_model_folder, tmp_path / "peft", "rslora")
    converted(folder, tiny_model_folder, tmp_path / "lora")
    reader = GGUFReader(write_gguf(tmp_path / "lora", tiny_model_folder, tmp_path))
    fields = {key: reader.fields[key].contents() for key in reader.fields}
    assert (fields["general.architecture"], fields["general.type"], fields["adapter.type"]) == (
        "llama",
        "adapter",
        "lora",
    )
    assert fields["adapter.lora.alpha"] == 4.0
    found = {tensor.name: torch.tensor(tensor.data) for tensor in reader.tensors}
    lora = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    layer = "base_model.model.model.layers.1"
    torch.testing.assert_close(found["blk.1.ffn_down.weight.lora_a"], lora[f"{layer}.mlp.down_proj.lora_A.weight"])
    torch.testing.assert_close(found["blk.1.attn_v.weight.lora_b"], lora[f"{layer}.self_attn.v_proj.lora_B.weight"])
    # two heads of 16 rows: row 2 i + j of a head comes from row 8 j + i
    k, order = (
        lora[f"{layer}.self_attn.k_proj.lora_B.weight"],
        [16 * h + 8 * j + i for h in (0, 1) for i in range(8) for j in (0, 1)],
    )
    torch.testing.assert_close(found["blk.1.attn_k.weight.lora_b"], k[order])
    assert len(found) == 2 * 7 * 2


def test_rows_of_layers_without_a_rotary_embedding_stay():
    b = torch.arange(32.0).reshape(16, 2)
    config = {"num_attention_heads": 2, "num_key_value_heads": 1}
    torch.testing.assert_close(interleaved(b, "model.layers.0.mlp.up_proj", config), b)
    assert not torch.equal(interleaved(b, "model.layers.0.self_attn.q_proj", config), b)


def test_mlx_gets_transposed_factors_and_an_explicit_scale(tiny_model_folder, tmp_path):
    folder, _ = saved(tiny_model_folder, tmp_path / "peft", "lora")
    converted(folder, tiny_model_folder, tmp_path / "lora")
    (tmp_path / "mlx").mkdir()
    write_mlx(tmp_path / "lora", tiny_model_folder, tmp_path / "mlx")
    config = json.loads((tmp_path / "mlx" / "adapter_config.json").read_text())
    assert config["lora_parameters"]["scale"] == 1.0
    assert config["num_layers"] == 2
    assert "self_attn.q_proj" in config["lora_parameters"]["keys"]
    theirs = load_file(tmp_path / "mlx" / "adapters.safetensors")
    ours = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    for name, tensor in ours.items():
        key = name.removeprefix("base_model.model.").removesuffix(".weight").lower()
        torch.testing.assert_close(theirs[key], tensor.T)
    assert len(theirs) == len(ours)


def test_what_cannot_be_served_is_refused_before_the_model_is_loaded(tiny_model_folder, tmp_path, monkeypatch):
    folder, _ = saved(tiny_model_folder, tmp_path / "peft", "lora")
    monkeypatch.setattr(models, "load_model", None)
    config = json.loads((folder / "adapter_config.json").read_text())

    def refused(match, to="lora", **changes):
        (folder / "adapter_config.json").write_text(json.dumps(config | changes))
        with pytest.raises(InputError, match=match):
            export(folder, to, tmp_path / "out", **ASKED)
        assert not (tmp_path / "out").exists()

    refused("modules_to_save", modules_to_save=["lm_head"])
    refused("use_foo", use_foo=1)
    refused("factors of rank 4 and 4, and adapter_config.json says r 8", r=8)
    refused("does not make the same start again", init_lora_weights="pissa_niter_4")
    base = tmp_path / "base"
    base.mkdir()
    for file in tiny_model_folder.iterdir():
        (base / file.name).write_bytes(file.read_bytes())
    told = json.loads((base / "config.json").read_text()) | {"architectures": ["GPT2LMHeadModel"]}
    (base / "config.json").write_text(json.dumps(told))
    refused("not of GPT2LMHeadModel", to="gguf", base_model_name_or_path=str(base))


def test_a_layer_that_gguf_cannot_hold_is_refused_before_the_model_is_loaded(tiny_model_folder, tmp_path, monkeypatch):
    folder, _ = saved(tiny_model_folder, tmp_path / "peft", "lora", target_modules=["q_proj", "lm_head"])
    tensors = load_file(folder / "adapter_model.safetensors")  # PEFT also saves the head itself
    save_file({k: v for k, v in tensors.items() if "base_layer" not in k}, folder / "adapter_model.safetensors")
    monkeypatch.setattr(models, "load_model", None)
    with pytest.raises(InputError, match="cannot adapt lm_head of llama"):
        export(folder, "gguf", tmp_path / "out", **ASKED)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("max_error", [1e-2, 0.9])
def test_an_export_that_lost_an_adapter_of_small_effect_is_not_kept(
    tiny_model_folder, tmp_path, monkeypatch, max_error
):
    """An adapter that moves logits by less than 2e-3, whose export does nothing at all."""
    from lora_select.export import command

    folder, _ = saved(tiny_model_folder, tmp_path / "peft", "lora")
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file({k: v / 20000 if "lora_B" in k else v for k, v in tensors.items()}, folder / "adapter_model.safetensors")
    usual = command._convert

    def lost(*told):
        made = usual(*told)
        out = told[3] / "adapter_model.safetensors"
        save_file({k: torch.zeros_like(v) for k, v in load_file(out).items()}, out, metadata={"format": "pt"})
        return dataclasses.replace(made, method="truncated")

    monkeypatch.setattr(command, "_convert", lost)
    with pytest.raises(WorldError, match="nothing is kept"):
        export(folder, None, tmp_path / "out", rank=None, max_error=max_error)
    assert not (tmp_path / "out").exists()


def test_numbers_that_are_not_finite_are_named(tiny_model_folder, tmp_path):
    folder, _ = saved(tiny_model_folder, tmp_path / "peft", "lora")
    tensors = load_file(folder / "adapter_model.safetensors")
    name = next(iter(tensors))
    tensors[name][0, 0] = torch.nan
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(InputError, match="not finite"):
        export(folder, None, tmp_path / "out", **ASKED)
    assert not (tmp_path / "out").exists()


def base_gguf(model_folder, file, *, architecture="llama", tokens=None, blocks=2):
    """A GGUF without tensors: what tells whose base it is."""
    import gguf

    names = {index: token for token, index in models.load_tokenizer(str(model_folder)).get_vocab().items()}
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_block_count(blocks)
    writer.add_embedding_length(64)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([names[i] for i in sorted(names)] if tokens is None else tokens)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def test_a_gguf_of_another_model_or_tokenizer_is_refused(tiny_model_folder, tmp_path):
    check_base(base_gguf(tiny_model_folder, tmp_path / "same.gguf"), tiny_model_folder)
    with pytest.raises(InputError, match=r"general\.architecture is qwen2, the base has llama"):
        check_base(base_gguf(tiny_model_folder, tmp_path / "a.gguf", architecture="qwen2"), tiny_model_folder)
    with pytest.raises(InputError, match="block_count is 3, the base has 2"):
        check_base(base_gguf(tiny_model_folder, tmp_path / "b.gguf", blocks=3), tiny_model_folder)
    with pytest.raises(InputError, match="another tokenizer .* the first is id 0"):
        check_base(base_gguf(tiny_model_folder, tmp_path / "c.gguf", tokens=["x"] * 260), tiny_model_folder)
    (tmp_path / "d.gguf").write_bytes(b"no gguf at all")
    with pytest.raises(InputError, match="is no GGUF file"):
        check_base(tmp_path / "d.gguf", tiny_model_folder)


def test_an_adapter_of_the_tied_head_has_no_place_in_gguf(tiny_model_folder, tmp_path):
    lora = tmp_path / "lora"
    lora.mkdir()
    (lora / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 2}))
    factors = {"lora_A": torch.ones(2, 64), "lora_B": torch.ones(260, 2)}
    save_file(
        {f"base_model.model.lm_head.{k}.weight": v for k, v in factors.items()}, lora / "adapter_model.safetensors"
    )
    with pytest.raises(InputError, match="cannot adapt lm_head"):
        write_gguf(lora, tiny_model_folder, tmp_path)
