"""The two-sided filter of the retention experiment: it solves its normal equations, and its moments are those of each row alone."""

import torch

from benchmarks.retention import two_sided
from lora_select import models
from lora_select.data.labels.tokens import IGNORED, TokenRow, collate
from lora_select.retention.filter import RIDGE, Pair
from lora_select.retention.forms import Update, applied

STRENGTH, PAD = 0.7, 3
LAYERS = ("model.layers.1.mlp.down_proj", "model.layers.0.self_attn.q_proj")


def _definite(size, seed):
    x = torch.randn(size, 2 * size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return x @ x.T / size


def whole(update):
    return update.b.double() @ update.a.double()


def test_of_full_rank_it_solves_the_normal_equations_and_at_nothing_it_is_the_update():
    outputs, inputs = 5, 9
    zt, zr, gt, gr = (_definite(size, seed) for seed, size in enumerate((inputs, inputs, outputs, outputs)))
    generator = torch.Generator().manual_seed(9)
    update = Update(torch.randn(5, inputs, generator=generator), torch.randn(outputs, 5, generator=generator))
    made = two_sided.TwoSided({"x": update}, {"x": Pair(zt, zr)}, {"x": ["x"]}, ({"x": gt.clone()}, {"x": gr.clone()}))
    before, after, same = (whole(one) for one in (update, made.at(STRENGTH)["x"], made.at(0.0)["x"]))
    ridged = gt + RIDGE * gt.diagonal().mean() * torch.eye(outputs)
    left = ridged @ (after - before) @ zt + STRENGTH * made.unit * gr @ after @ zr
    torch.testing.assert_close(left, torch.zeros_like(left), atol=1e-5, rtol=0)
    torch.testing.assert_close(same, before, atol=1e-5, rtol=0)
    assert float((after - before).norm()) > 0.01


def test_output_moments_are_those_of_each_row_alone_with_the_same_labels(tiny_model_folder):
    model = models.load_model(str(tiny_model_folder))
    generator = torch.Generator().manual_seed(1)
    updates = {
        LAYERS[1]: Update(torch.randn(2, 64, generator=generator) / 8, torch.randn(64, 2, generator=generator) / 8)
    }
    rows = [TokenRow("short", (7, 8), (False, True)), TokenRow("long", (1, 9, 30, 4), (False, True, False, True))]
    found = two_sided.output_moments(model, updates, LAYERS, rows, PAD)
    batch = collate(rows, PAD)
    wanted = batch.pop("labels")[:, 1:].ne(IGNORED)
    with applied(model, updates):
        logs = model(**batch).logits[:, :-1][wanted].log_softmax(-1)
        drawn = torch.multinomial(logs.detach().exp(), 1, generator=torch.Generator().manual_seed(0)).flatten()
        expected = {name: torch.zeros(64, 64, dtype=torch.float64) for name in LAYERS}
        for row, labels in zip(rows, drawn.split([1, 2]), strict=True):
            kept = {}
            hooks = [
                model.get_submodule(name).register_forward_hook(
                    lambda _m, _i, out, name=name, kept=kept: kept.__setitem__(name, out)
                )
                for name in LAYERS
            ]
            places = torch.tensor(row.label_mask)[1:]
            with torch.enable_grad():
                inputs = model.get_input_embeddings()(torch.tensor([row.input_ids])).requires_grad_()
                logits = model(inputs_embeds=inputs).logits[0, :-1][places]
                loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
                gradients = torch.autograd.grad(loss, [kept[name] for name in LAYERS])
            for name, gradient in zip(LAYERS, gradients, strict=True):
                expected[name] += gradient[0].double().T @ gradient[0].double() / 3
            for hook in hooks:
                hook.remove()
    for name in LAYERS:
        torch.testing.assert_close(
            found[name], expected[name], atol=1e-6 * float(expected[name].abs().max()), rtol=1e-3
        )
