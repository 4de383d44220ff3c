"""Every kind of model and setting: what the hooks see is what autograd says the weight gradients are."""

import copy
import gc

import pytest
import reference
import torch
from safetensors.torch import load_file
from test_analyze import loss, microbatches, run, wide_llama
from torch import nn

from lora_select.errors import InputError
from lora_select.spectral.linear_layers import linear_layers, plain_weight


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=260, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2)
    return GPT2LMHeadModel(config).eval()


def classifier():
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=260, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, num_labels=3
    )
    return BertForSequenceClassification(config).eval()


def classification_loss(model, batch):
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return nn.functional.cross_entropy(logits, batch["labels"], reduction="none"), torch.ones(
        len(logits), dtype=torch.int64
    )


def class_batches(count: int = 8):
    return [{**batch, "labels": batch["input_ids"][:, 0] % 3} for batch in microbatches(count)]


@pytest.fixture(scope="module")
def llama(tiny_model_folder):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    gc.freeze()  # each pass that does not fit collects what it left, which here would be looked for in every module
    return model


def signal_energies(model, batches, loss_fn, names):
    """By autograd, with the folds of eight microbatches."""
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    dense = reference.weight_gradients(model, batches, loss_fn, names)
    labels = sum(int(loss_fn(model, batch)[1].sum()) for batch in batches)
    modules = dict(model.named_modules())
    transposed = {name for name in names if type(modules[name]).__name__ == "Conv1D"}
    folds = [0, 1, 0, 1, 2, 3, 2, 3]
    return {
        name: reference.cross_half_u_statistic(
            (gradients.transpose(0, 2, 1) if name in transposed else gradients) * 8 / labels, folds
        )
        for name, gradients in dense.items()
    }


def check(spectra, model, batches, loss_fn):
    """Every measured signal energy is autograd's."""
    truth = signal_energies(model, batches, loss_fn, [layer.name for layer in spectra.layers])
    for layer in spectra.layers:
        assert layer.signal_energy == pytest.approx(truth[layer.name], rel=1e-3, abs=1e-6 * layer.noise_energy)


def test_transposed_conv1d_layers_of_gpt2(tmp_path):
    model = gpt2()
    spectra = run(model, tmp_path, sketch_size=128)
    assert {layer.kind for layer in spectra.layers} == {"c_attn", "c_proj", "c_fc"}
    attention = next(layer for layer in spectra.layers if layer.kind == "c_attn")
    assert (attention.out_features, attention.in_features) == (96, 32)
    assert torch.equal(
        plain_weight(dict(model.named_modules())[attention.name]).T, model.transformer.h[0].attn.c_attn.weight
    )
    check(spectra, model, microbatches(), loss)


def test_a_sequence_classifier(tmp_path):
    model = classifier()
    spectra = run(model, tmp_path, batches=class_batches(), loss_fn=classification_loss, sketch_size=128)
    assert "classifier" not in {layer.name for layer in spectra.layers}
    check(spectra, model, class_batches(), classification_loss)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_counts_each_layer_once(llama, tmp_path, reentrant):
    plain = run(llama, tmp_path)
    model = copy.deepcopy(llama)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    model.train()
    checkpointed = run(model, tmp_path)
    assert model.training
    assert len(checkpointed.layers) == len(plain.layers) == 14
    for one, other in zip(checkpointed.layers, plain.layers, strict=True):
        assert one.signal_energy == pytest.approx(other.signal_energy, rel=1e-5)
        assert one.tokens == other.tokens
        assert one.output_energy == pytest.approx(other.output_energy, rel=1e-5)


def test_dropout_is_off_under_checkpointing(tmp_path):
    model = gpt2()
    plain = run(model, tmp_path)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    model.gradient_checkpointing_enable()
    model.train()
    dropped = run(model, tmp_path)
    assert [layer.signal_energy for layer in dropped.layers] == pytest.approx(
        [layer.signal_energy for layer in plain.layers], rel=1e-4
    )


def test_autocast_in_bf16_is_near_fp32(llama, tmp_path):
    def in_bf16(model, batch):
        with torch.autocast("cpu", torch.bfloat16):
            return loss(model, batch)

    plain, rounded = run(llama, tmp_path, sketch_size=16), run(llama, tmp_path, sketch_size=16, loss_fn=in_bf16)
    for one, other in zip(rounded.layers, plain.layers, strict=True):
        assert one.noise_energy == pytest.approx(other.noise_energy, rel=0.05)
        assert abs(one.signal_energy - other.signal_energy) < 0.05 * other.noise_energy


def test_a_layer_that_is_called_twice_is_read_once_with_all_its_tokens(tmp_path):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.embedding = nn.Embedding(260, 24)
            self.inner = nn.Linear(24, 24)
            self.lm_head = nn.Linear(24, 260, bias=False)

        def get_input_embeddings(self):
            return self.embedding

        def forward(self, input_ids, attention_mask):
            from types import SimpleNamespace

            hidden = self.embedding(input_ids) * attention_mask[..., None]
            return SimpleNamespace(logits=self.lm_head(torch.tanh(self.inner(torch.tanh(self.inner(hidden))))))

    model = Twice()
    spectra = run(model, tmp_path, sketch_size=128)
    assert [layer.name for layer in spectra.layers] == ["inner"]
    assert spectra.layers[0].tokens == 2 * spectra.tokens
    check(spectra, model, microbatches(), loss)


def test_shared_weights_are_counted_once(tiny_model_folder, tmp_path):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    model.model.layers[1].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight
    spectra = run(model, tmp_path)
    reason = spectra.skipped_layers["model.layers.1.mlp.up_proj"]
    assert "shares its weight with model.layers.0.mlp.up_proj" in reason
    assert len(spectra.layers) == 13


def test_expert_weights_in_one_tensor_are_named_with_the_reason(tiny_model_folder, tmp_path):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    model.experts = nn.ParameterDict({"gate_up_proj": nn.Parameter(torch.zeros(4, 8, 6))})
    spectra = run(model, tmp_path)
    assert "4 x 8 x 6" in spectra.skipped_layers["experts.gate_up_proj"]


def test_offloaded_weights_are_refused(tiny_model_folder, tmp_path):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    spare = nn.Linear(4, 4, device="meta")
    spectra = run(model, tmp_path, layers={**linear_layers(model), "spare": spare})
    assert "meta device" in spectra.skipped_layers["spare"]


def test_device_map(tiny_model_folder, tmp_path, llama):
    from transformers import AutoModelForCausalLM

    mapped = AutoModelForCausalLM.from_pretrained(tiny_model_folder, device_map={"": "cpu"})
    assert run(mapped, tmp_path).layers == run(llama, tmp_path).layers


def out_of_memory_above(rows: int):
    """A loss that fails as the allocator does, after part of the forward pass is done."""

    def limited(model, batch):
        nll, labels = loss(model, batch)
        if len(batch["input_ids"]) > rows:
            nll = nll + model.model.embed_tokens(batch["input_ids"]).sum() * 0
            nll.register_hook(fail)
        return nll, labels

    def fail(_gradient):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    return limited


def wide(count: int = 8):
    """Microbatches of four rows."""
    halves = [microbatches(count, seed) for seed in (0, 1)]
    return [{name: torch.cat([a[name], b[name]]) for name in a} for a, b in zip(*halves, strict=True)]


def test_a_microbatch_that_does_not_fit_is_run_in_halves_with_the_same_result(llama, tmp_path):
    whole = run(llama, tmp_path, batches=wide())
    halved = run(llama, tmp_path, batches=wide(), loss_fn=out_of_memory_above(1))
    assert not whole.notes
    assert "did not fit into memory with 4 rows" in halved.notes[0]
    assert "with 2 rows" in halved.notes[1]
    for one, other in zip(halved.layers, whole.layers, strict=True):
        assert one.tokens == other.tokens
        assert one.signal_energy == pytest.approx(other.signal_energy, rel=1e-4)
        assert one.heldout_values == pytest.approx(other.heldout_values, rel=1e-3, abs=1e-5)
        assert one.noise_energy == pytest.approx(other.noise_energy, rel=0.1)
        assert one.output_energy == pytest.approx(other.output_energy, rel=1e-5)


def test_halves_give_the_same_activation_directions_of_wide_layers(llama, tmp_path, monkeypatch):
    monkeypatch.setattr("lora_select.spectral.accumulate.MOMENT_TOKENS", 150)
    model = wide_llama()
    whole = run(model, tmp_path, batches=wide())
    halved = run(model, tmp_path, batches=wide(), loss_fn=out_of_memory_above(1))
    assert halved.notes
    tensors = [load_file(tmp_path / spectra.tensors.path) for spectra in (whole, halved)]
    for one, other in zip(whole.layers, halved.layers, strict=True):
        assert other.activation_values == pytest.approx(one.activation_values, rel=1e-3)
        assert other.activation_energy == pytest.approx(one.activation_energy, rel=1e-5)
        here, there = (parts[f"{one.name}.activation_vectors"][:, :8] for parts in tensors)
        assert float((here.T @ there).square().sum()) == pytest.approx(8, abs=1e-3)


def test_memory_that_runs_out_in_mid_backward_counts_nothing_twice(llama, tmp_path):
    """The first layers of the backward pass have been read when the allocator fails."""
    plain = run(llama, tmp_path, batches=wide())
    model = copy.deepcopy(llama)
    failing = {"left": 3}

    def fail(_module, _inputs, output):
        def maybe(gradient):
            if gradient.shape[0] > 2 and failing["left"] > 0:
                failing["left"] -= 1
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
            return gradient

        if output.requires_grad:
            output.register_hook(maybe)

    hook = model.model.layers[0].register_forward_hook(lambda m, i, o: fail(m, i, o[0] if isinstance(o, tuple) else o))
    halved = run(model, tmp_path, batches=wide())
    hook.remove()
    assert len(halved.notes) == 3
    for one, other in zip(halved.layers, plain.layers, strict=True):
        assert one.signal_energy == pytest.approx(other.signal_energy, rel=1e-4)
        assert one.tokens == other.tokens
        assert one.output_energy == pytest.approx(other.output_energy, rel=1e-5)


def test_one_row_that_does_not_fit_is_an_error_with_the_way_out(llama, tmp_path):
    with pytest.raises(InputError, match=r"one row of 14 tokens does not fit .* lower `dataset\.max_length`"):
        run(llama, tmp_path, batches=wide(), loss_fn=out_of_memory_above(0))


def test_a_quantised_weight_is_recovered_through_the_layer():
    class Packed(nn.Linear):
        """Stands for a quantised layer: its weight is not a matrix of numbers."""

        def __init__(self, plain: nn.Linear):
            super().__init__(plain.in_features, plain.out_features)
            self.plain = plain
            self.weight = nn.Parameter(torch.zeros(5, 1, dtype=torch.uint8), requires_grad=False)
            self.bias = plain.bias

        def forward(self, x):
            return self.plain(x)

    plain = nn.Linear(6, 4)
    torch.testing.assert_close(plain_weight(Packed(plain)), plain.weight.detach(), rtol=1e-5, atol=1e-6)


def test_a_sketch_that_is_too_small_is_refused(llama, tmp_path):
    with pytest.raises(InputError, match=r"`analysis\.sketch_size` must be at least 4, got 2"):
        run(llama, tmp_path, sketch_size=2)
