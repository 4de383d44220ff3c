"""The whole pass over a tiny language model, against gradients by autograd."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import reference
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lora_select.errors import InputError
from lora_select.records import Spectra, from_json, to_json
from lora_select.spectral import structure
from lora_select.spectral.linear_layers import linear_layers
from lora_select.spectral.measuring_pass import analyze
from lora_select.variants import CATALOGUE, VARIANTS

K = 8


@pytest.fixture(scope="module")
def model(tiny_model_folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_model_folder)


def loss(model, batch):
    """Summed loss of each row over its labels, and their number, by the textbook."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1].float()
    labels = batch["labels"][:, 1:]
    nll = nn.functional.cross_entropy(logits.transpose(1, 2), labels, ignore_index=-100, reduction="none")
    return nll.sum(1), (labels != -100).sum(1)


def microbatches(count: int = K, seed: int = 0, length: int = 14) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(count):
        ids = torch.randint(4, 260, (2, length), generator=generator)
        mask = torch.ones_like(ids)
        mask[1, length - 4 :] = 0
        labels = ids.masked_fill(mask == 0, -100)
        labels[:, : length // 2] = -100
        batches.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return batches


def run(model, folder: Path, batches=None, **changes) -> Spectra:
    options = {"loss_fn": loss, "variants": CATALOGUE, "sketch_size": 8, "seed": 0, "folder": folder}
    options |= {"dataset_digest": "d", "model_digest": "m"}
    return analyze(model, microbatches() if batches is None else batches, **(options | changes))


def test_every_statistic_equals_autograd_when_the_sketch_is_complete(model, tmp_path):
    spectra = run(model, tmp_path, sketch_size=128)
    batches, names = microbatches(), [layer.name for layer in spectra.layers]
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    dense = reference.weight_gradients(model, batches, loss, names)
    labels = sum(int(loss(model, batch)[1].sum()) for batch in batches)
    assert spectra.label_tokens == labels
    folds = [0, 1, 0, 1, 2, 3, 2, 3]
    for layer in spectra.layers:
        gradients = dense[layer.name] * K / labels
        assert layer.signal_energy == pytest.approx(
            reference.cross_half_u_statistic(gradients, folds), rel=1e-3, abs=1e-6 * layer.noise_energy
        )
        norms = (gradients**2).sum((1, 2)).mean()
        assert layer.noise_energy == pytest.approx(norms - layer.signal_energy, rel=1e-3)


def test_a_small_sketch_stays_within_its_error(model, tmp_path):
    exact = {layer.name: layer for layer in run(model, tmp_path, sketch_size=128).layers}
    far = 0
    for layer in run(model, tmp_path, sketch_size=12).layers:
        far += abs(layer.signal_energy - exact[layer.name].signal_energy) > 3 * layer.signal_energy_se
        assert layer.noise_energy == pytest.approx(exact[layer.name].noise_energy, rel=0.3)
    assert far <= 1


def test_flipped_signs_leave_no_signal(model, tmp_path):
    """The negative control: every microbatch repeats one text, so most layers have signal until signs cancel it."""
    same = microbatches(1) * 16
    signs = [1, -1, -1, 1, 1, -1, 1, -1, 1, 1, -1, -1, 1, -1, -1, 1]

    def flipped(model, batch):
        nll, labels = loss(model, batch)
        return nll * batch["sign"], labels

    noisy = [
        {**(one if index % 4 else other), "sign": torch.tensor(float(sign))}
        for index, (one, other, sign) in enumerate(zip(same, microbatches(16, seed=1), signs, strict=True))
    ]
    plain = run(model, tmp_path, batches=noisy, sketch_size=16)
    control = run(model, tmp_path, batches=noisy, loss_fn=flipped, sketch_size=16)
    assert sum(layer.signal_energy > 2 * layer.signal_energy_se for layer in plain.layers) >= 10
    assert all(layer.signal_energy < 2 * layer.signal_energy_se for layer in control.layers)
    assert sum(layer.signal_rank > 0 for layer in control.layers) <= 1


def test_structure_scores_cost_nothing_where_none_are_wanted(model, tmp_path, monkeypatch):
    """And what the rule reads is the same: shares of its nine variants, displacements of all."""
    same = microbatches(1) * 8  # every microbatch repeats one text, so that there is signal
    names = {variant.name for variant in VARIANTS} - {"oft", "hira"}  # theirs are of the scores
    whole = run(model, tmp_path, batches=same)
    monkeypatch.setattr(structure, "_rotation", None)  # a score that is computed would fail
    plain = run(model, tmp_path, batches=same, structure=False)
    assert any(layer.structure for layer in whole.layers)
    for layer, other in zip(plain.layers, whole.layers, strict=True):
        assert (layer.structure, layer.structure_se) == ({}, {})
        assert layer.displacements == other.displacements
        shares = [{k: v for k, v in one.tangent_shares.items() if k.split("@")[0] in names} for one in (layer, other)]
        assert shares[0] == shares[1]


def test_the_record_is_json_and_names_its_tensors(model, tmp_path):
    spectra = run(model, tmp_path)
    assert from_json(Spectra, to_json(spectra)) == spectra
    assert len(spectra.layers) == 14
    assert spectra.tokens == K * (14 + 10)
    tensors = load_file(tmp_path / spectra.tensors.path)
    layer = spectra.layers[0]
    assert tensors[f"{layer.name}.activation_vectors"].shape == (layer.in_features, len(layer.activation_values))
    assert layer.tangent_shares["lora@16"] == pytest.approx(16 / layer.in_features)
    assert set(layer.tangent_shares) == set(layer.tangent_shares_se)
    assert set(layer.tangent_shares) - set(layer.displacements) == {
        key for key in layer.tangent_shares if key.partition("@")[0] in {"olora", "randlora", "waveft"}
    }


def test_the_model_is_left_as_it_was(model, tmp_path):
    model.train()
    model.lm_head.weight.requires_grad_(True)
    model.model.norm.weight.requires_grad_(False)
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    run(model, tmp_path)
    assert model.training
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == before
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    model.eval()


class Shapes(TorchDispatchMode):
    """Records the shape of every tensor that is made, but for views of the weights."""

    def __init__(self, model):
        super().__init__()
        self.weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in self.weights:
                self.seen.add(tuple(tensor.shape))
        return result


def wide_llama():
    """One block whose inputs are too wide for their whole second moment."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=260,
        hidden_size=280,
        intermediate_size=328,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    return LlamaForCausalLM(config).eval()


def named_layers(model, kinds):
    return {name: module for name, module in linear_layers(model).items() if name.rpartition(".")[2] in kinds}


def test_no_gradient_of_a_weights_shape_is_ever_made(tmp_path):
    wide = wide_llama()
    names = ["gate_proj", "up_proj", "down_proj", "k_proj", "v_proj"]  # shapes that nothing else has
    with Shapes(wide) as shapes:
        run(wide, tmp_path, batches=microbatches(4), layers=named_layers(wide, names))
    weights = {tuple(module.weight.shape) for module in named_layers(wide, names).values()}
    assert weights == {(328, 280), (280, 328), (140, 280)}
    assert {shape for shape in shapes.seen if shape in weights or shape[::-1] in weights} == set()


SECOND_PROCESS = """
import sys, hashlib
from pathlib import Path
sys.path[:0] = sys.argv[3:]
import torch
torch.set_num_threads(1)
from transformers import AutoModelForCausalLM
import test_analyze
spectra = test_analyze.run(AutoModelForCausalLM.from_pretrained(sys.argv[1]), Path(sys.argv[2]))
print(spectra.tensors.sha256, hashlib.sha256(repr(spectra.layers).encode()).hexdigest())
"""


@pytest.mark.slow
def test_a_second_process_gives_the_same_bytes(model, tiny_model_folder, tmp_path):
    first = run(model, tmp_path)
    here = Path(__file__).parent
    output = subprocess.run(
        [sys.executable, "-c", SECOND_PROCESS, str(tiny_model_folder), str(tmp_path), str(here), str(here.parent)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert output[-2:] == [first.tensors.sha256, hashlib.sha256(repr(first.layers).encode()).hexdigest()]


def test_progress_counts_microbatches_and_layers(model, tmp_path):
    seen = []
    run(model, tmp_path, progress=lambda done, total, message: seen.append((done, total, message)))
    assert [done for done, _, _ in seen] == list(range(1, K + 14 + 1))
    assert {total for _, total, _ in seen} == {K + 14}


def test_output_layer_is_never_measured(model):
    assert "lm_head" not in linear_layers(model)
    assert len(linear_layers(model)) == 14


def test_too_few_microbatches(model, tmp_path):
    with pytest.raises(InputError, match="at least 4 microbatches, got 3"):
        run(model, tmp_path, batches=microbatches(3))


def test_no_labels(model, tmp_path):
    batches = [{**batch, "labels": torch.full_like(batch["labels"], -100)} for batch in microbatches()]
    with pytest.raises(InputError, match="none of the 192 tokens .* is a label"):
        run(model, tmp_path, batches=batches)


def test_non_finite_activations_name_the_layer(tiny_model_folder, tmp_path):
    from transformers import AutoModelForCausalLM

    broken = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    with torch.no_grad():
        broken.model.layers[1].input_layernorm.weight[3] = torch.inf
    with pytest.raises(InputError, match=r"model\.layers\.1\.self_attn\.q_proj holds NaN or infinity"):
        run(broken, tmp_path)


def test_a_named_layer_that_is_never_reached_is_an_error(model, tmp_path):
    layers = named_layers(model, ["q_proj"]) | {"spare": nn.Linear(4, 4)}
    with pytest.raises(InputError, match="spare: never reached"):
        run(model, tmp_path, layers=layers)


def test_an_unreached_layer_of_the_model_is_skipped_with_its_reason(tiny_model_folder, tmp_path):
    from transformers import AutoModelForCausalLM

    extended = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    extended.spare = nn.Linear(4, 4)
    spectra = run(extended, tmp_path)
    assert dict(spectra.skipped_layers) == {"spare": "never reached by the microbatches"}


def test_a_model_without_linear_layers(tmp_path):
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(4, 4)

    with pytest.raises(InputError, match=r"Bare has no nn\.Linear .* Embedding"):
        run(Bare(), tmp_path)
