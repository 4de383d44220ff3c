"""Experts that a layer holds in one tensor (Mixtral, gpt-oss): chosen, planned, trained, loaded again, merged; and where they are left."""

import dataclasses
import json

import pytest
import torch
from byte_tokenizer import byte_tokenizer
from recipe_samples import chats, write_jsonl
from safetensors.torch import load_file
from training_jobs import job, spec

import lora_select as ls
from lora_select import models, serving
from lora_select.errors import InputError
from lora_select.export.command import export
from lora_select.recipes import axolotl, llamafactory, ms_swift, trl, unsloth
from lora_select.records import Constraints
from lora_select.selection.constraints import experts_left
from lora_select.selection.explanation import answer
from lora_select.selection.rule import select
from lora_select.training import zero
from lora_select.training.job import METRICS
from lora_select.training.supervisor import launch
from lora_select.variants import named

SIZES = {"vocab_size": 260, "hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 2, "num_local_experts": 4}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512}
TENSORS = ["experts.down_proj", "experts.gate_up_proj"]
OF_EXPERTS = 2 * 4 * 16 * ((64 + 64) + (64 + 32))
"""Trained numbers: layers x experts x r x the sides of both tensors."""
QUICK = {"microbatches": 4, "sketch_size": 16, "base_loss_rows": 4, "max_length": 512, "batch_size": 8}
JUDGED = {"exact_match_rows": 2, "max_new_tokens": 4, "bootstrap_samples": 200}


def saved(family, folder):
    import transformers

    kind = getattr(transformers, f"{family}ForCausalLM")
    torch.manual_seed(0)
    config = kind.config_class(**SIZES, **HEADS, num_experts_per_tok=2, bos_token_id=1, eos_token_id=2, pad_token_id=3)
    kind(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experts")
    write_jsonl(folder / "rows.jsonl", chats(40))
    return folder / "rows.jsonl"


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory):
    return saved("Mixtral", tmp_path_factory.mktemp("mixtral"))


@pytest.fixture(scope="module")
def chosen(mixtral, rows):
    """The line on a tiny Mixtral up to its decision."""
    return ls.recommend(str(mixtral), rows, **QUICK, runs_dir=str(rows.parent / "runs"))


@pytest.fixture(scope="module")
def run(mixtral, rows):
    """The whole line on it."""
    told = QUICK | JUDGED | {"runs_dir": str(rows.parent / "runs"), "tracking_uri": None, "learning_rate": 0.01}
    return ls.finetune(str(mixtral), rows, **told)


def test_the_answer_the_plan_and_the_count_hold_them(chosen):
    choice = chosen.spec
    assert choice.peft_arguments["target_parameters"] == TENSORS
    assert choice.num_parameters == 2 * 16 * sum(64 + side for side in (64, 32, 32, 64)) + OF_EXPERTS
    assert answer(chosen.decision)[1].startswith("The experts are adapted too: ")
    assert f"{OF_EXPERTS:,} trained parameters" in answer(chosen.decision)[1]


@pytest.mark.slow
def test_they_are_trained_saved_and_loaded_again(run):
    config = json.loads((run.adapter_folder / "adapter_config.json").read_text())
    assert sorted(config["target_parameters"]) == TENSORS
    factors = {
        name: t for name, t in load_file(run.adapter_folder / "adapter_model.safetensors").items() if "experts" in name
    }
    assert sum(tensor.numel() for tensor in factors.values()) == OF_EXPERTS
    assert all(tensor.any() for tensor in factors.values())
    check = run._read("proof", ls.records.ReloadCheck)
    assert check.passed
    assert check.function_change > 0.05
    assert not run.replay()


@pytest.mark.slow
def test_they_are_merged_and_no_engine_is_given_them_as_lora(run, mixtral, tmp_path):
    made = export(run.adapter_folder, "merged", tmp_path / "merged", rank=None, max_error=1e-3, base=str(mixtral))
    assert made.max_logit_difference < 1e-3 < made.function_change
    with pytest.raises(InputError, match="target_parameters"):
        export(run.adapter_folder, None, tmp_path / "lora", rank=None, max_error=1e-3, base=str(mixtral))
    folder = serving.read_folder(run.adapter_folder)
    assert not serving.faults(folder)
    (warning,) = serving.warnings(folder)
    assert "target_parameters" in warning
    assert "--to merged" in warning


@pytest.mark.slow
def test_zero_2_on_two_ranks_trains_them_as_stage_0_does(mixtral, tmp_path):
    told = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "target_parameters": TENSORS}
    adapter, losses = spec(peft_arguments=told | {"task_type": "CAUSAL_LM"}), {}
    for stage in (0, 2):
        folder = tmp_path / str(stage)
        made = launch.train(
            job(folder, mixtral, adapter=adapter, zero_stage=stage, total_steps=4, warmup_steps=0), folder
        )
        losses[stage] = [json.loads(line)["loss"] for line in (folder / METRICS).read_text().splitlines()]
        held = load_file(folder / made.directory / "adapter_model.safetensors")
        assert all(tensor.any() for name, tensor in held.items() if "experts" in name and "lora_B" in name)
    assert losses[2] == pytest.approx(losses[0], rel=1e-4)
    assert losses[0][-1] < losses[0][0]


@pytest.mark.parametrize(
    ("variant", "changes", "words"),
    [
        ("lora", {}, ""),
        ("rslora", {"serve": "merged"}, ""),
        ("dora", {}, "plain LoRA"),
        ("lora", {"serve": "vllm"}, "vLLM"),
        ("lora", {"quantized_base": "nf4"}, "nf4"),
        ("lora", {"zero_stage": 3}, "ZeRO-3"),
        ("lora", {"adapt_experts": False}, "adapt_experts"),
    ],
)
def test_where_they_are_left_and_why(variant, changes, words):
    left = experts_left(named(variant, 16), Constraints(**changes))
    assert words in left
    assert bool(words) == bool(left)


def test_what_is_left_is_said_first_and_named(chosen):
    from lora_select.pipeline.history import read_run

    found = read_run(chosen.folder)
    decision = select(found.profile, found.spectra, dataclasses.replace(chosen.decision.inputs, serve="vllm"))
    assert "target_parameters" not in decision.choice.peft_arguments
    assert answer(decision)[1].startswith("The experts are not adapted: ")
    assert "vLLM" in answer(decision)[1]


def test_stage_3_and_tools_that_were_not_tried_say_so(chosen):
    choice = chosen.spec
    assert zero.working(choice, None) == (0, 1, 2)
    assert not trl.cannot(choice, None)
    for tool in (axolotl, ms_swift, llamafactory, unsloth):
        assert any("adapt_experts=false" in sentence for sentence in tool.cannot(choice, None))


@pytest.mark.slow
def test_experts_stored_the_other_way_round_have_the_count_that_peft_makes(rows, tmp_path_factory):
    """gpt-oss keeps (experts, in, out); its choice is a PEFT model that begins at the base's function."""
    folder = saved("GptOss", tmp_path_factory.mktemp("gpt-oss"))
    choice = ls.recommend(str(folder), rows, **QUICK, runs_dir=str(rows.parent / "runs"))
    base, ids = models.load_model(str(folder)), torch.arange(4, 20)[None]
    before = base(input_ids=ids).logits
    model = choice.apply(base)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == choice.spec.num_parameters
    torch.testing.assert_close(model(input_ids=ids).logits, before)
