"""Any adapter as updates of linear layers, applied by hooks as PEFT applies it, and written as what plain loaders take."""

import json

import pytest
import torch
from moved_adapters import logits, moved
from safetensors.torch import load_file, save_file

from lora_select import models
from lora_select.errors import InputError
from lora_select.retention import forms
from lora_select.retention.bench import scaled
from lora_select.retention.forms import Update


def saved(base, folder, name="lora", r=4, **changes):
    """A PEFT folder whose trained parameters are moved away from their start."""
    moved(base, name, r, **changes).save_pretrained(str(folder))
    return folder


def read(base, folder):
    model = models.load_model(str(base))
    return model, forms.read(folder, model, load_base=lambda: models.load_model(str(base)))


def by_peft(base, folder):
    return logits(models.with_adapter(models.load_model(str(base)), folder))


@pytest.mark.parametrize(
    ("name", "r", "changes", "kind"),
    [
        ("lora", 4, {}, "lora"),
        ("rslora", 4, {}, "lora"),
        ("lora", 6, {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.0.mlp.up_proj": 5}}, "lora"),
        ("miss", 4, {}, "low rank"),
        ("loha", 4, {}, "low rank"),
        ("dora", 4, {}, "dense"),
        ("oft", 0, {"oft_block_size": 16}, "dense"),
        ("shira", 4, {}, "dense"),
        ("hra", 4, {}, "low rank"),
    ],
)
def test_hooks_do_what_peft_does(tiny_model_folder, tmp_path, name, r, changes, kind):
    folder = saved(tiny_model_folder, tmp_path, name, r, **changes)
    model, form = read(tiny_model_folder, folder)
    assert form.kind == kind
    before = logits(model)
    with forms.applied(model, form.updates):
        inside = logits(model)
    torch.testing.assert_close(inside, by_peft(tiny_model_folder, folder), rtol=1e-3, atol=1e-3)
    assert (inside - before).abs().max() > 0.01
    assert torch.equal(logits(model), before)


def test_an_initialisation_that_changes_the_base_is_read_whole_with_rank_2r(tiny_model_folder, tmp_path):
    folder = saved(tiny_model_folder, tmp_path, "lora", 4, init_lora_weights="pissa")
    assert json.loads((folder / forms.CONFIG).read_text())["init_lora_weights"] == "pissa"
    model, form = read(tiny_model_folder, folder)
    with forms.applied(model, form.updates):
        torch.testing.assert_close(logits(model), by_peft(tiny_model_folder, folder), rtol=1e-3, atol=1e-3)
    assert form.kind == "low rank"
    assert {len(update.a) for update in form.updates.values()} == {8}


@pytest.mark.parametrize(("name", "r"), [("lora", 4), ("miss", 4), ("oft", 0)])
def test_what_is_written_does_what_was_searched(tiny_model_folder, tmp_path, name, r):
    changes = {"oft_block_size": 16} if name == "oft" else {}
    folder = saved(tiny_model_folder, tmp_path / "raw", name, r, **changes)
    model, form = read(tiny_model_folder, folder)
    new, written = forms.loadable(form, scaled(form.updates, 1.0), 0.05)
    forms.write(form, new, tmp_path / "out", str(tiny_model_folder), written)
    with forms.applied(model, new):
        inside = logits(model)
    torch.testing.assert_close(by_peft(tiny_model_folder, tmp_path / "out"), inside, rtol=1e-3, atol=1e-3)
    config = json.loads((tmp_path / "out" / forms.CONFIG).read_text())
    assert config["peft_type"] == "LORA"
    if form.kind == "lora":
        before, after = (load_file(tmp_path / part / forms.WEIGHTS) for part in ("raw", "out"))
        assert all(torch.equal(before[key], after[key]) for key in before if "lora_B" in key)
        assert written.rank is None
    else:
        assert config["r"] == written.rank
        assert written.error <= 0.05


def test_the_rank_is_the_least_within_the_error_and_beyond_128_it_is_refused():
    generator = torch.Generator().manual_seed(0)
    u = torch.linalg.qr(torch.randn(200, 200, generator=generator))[0]
    steep = {"x": Update(u * torch.tensor([10.0, 1.0, 0.1, *[0.0] * 197]) @ u.T, None)}
    assert forms.least_rank(steep, 0.05)[0] == 2
    assert forms.least_rank(steep, 0.2)[0] == 1
    with pytest.raises(InputError, match="no LoRA of rank 128"):
        forms.least_rank({"x": Update(u, None)}, 0.05)


def edit(folder, **changes):
    file = folder / forms.CONFIG
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_bad_adapters_are_named_before_anything_is_measured(tiny_model_folder, tmp_path):
    with pytest.raises(InputError, match="holds no adapter"):
        read(tiny_model_folder, tmp_path)
    folder = saved(tiny_model_folder, tmp_path / "a")
    edit(folder, modules_to_save=["lm_head"])
    with pytest.raises(InputError, match="modules_to_save"):
        read(tiny_model_folder, folder)
    edit(folder, modules_to_save=None, bias="all")
    with pytest.raises(InputError, match="biases"):
        read(tiny_model_folder, folder)
    edit(folder, bias="none")
    tensors = load_file(folder / forms.WEIGHTS)
    key = next(key for key in tensors if "lora_A" in key)
    save_file(tensors | {key: torch.full_like(tensors[key], float("nan"))}, folder / forms.WEIGHTS)
    with pytest.raises(InputError, match="NaN or infinity"):
        read(tiny_model_folder, folder)
    save_file(tensors | {key: torch.zeros(4, 99)}, folder / forms.WEIGHTS)
    with pytest.raises(InputError, match="another base"):
        read(tiny_model_folder, folder)
    save_file(
        {name: value for name, value in tensors.items() if name != key.replace("lora_A", "lora_B")},
        folder / forms.WEIGHTS,
    )
    with pytest.raises(InputError, match="no lora_B"):
        read(tiny_model_folder, folder)
    save_file({name.replace("layers.1", "layers.9"): value for name, value in tensors.items()}, folder / forms.WEIGHTS)
    with pytest.raises(InputError, match=r"layers\.9.*no linear layer"):
        read(tiny_model_folder, folder)
    (folder / forms.WEIGHTS).unlink()
    with pytest.raises(InputError, match="pickled"):
        read(tiny_model_folder, folder)
