"""Each optimizer does what its variant says, seen in the parameters after a step on PEFT's own model."""

import peft
import pytest
import torch
from torch import nn
from training_jobs import job, plan, spec

from lora_select.errors import InputError
from lora_select.training.supervisor import launch
from lora_select.training.worker.optimizer import make_optimizer, scheduled, set_rate
from lora_select.variants import named

RATE = 1e-3


class Two(nn.Module):
    """Two layers, so that AdaLoRA has a budget to share out."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.config = {"tie_word_embeddings": False}
        self.first, self.second = nn.Linear(12, 10), nn.Linear(10, 8)

    def forward(self, x):
        return self.second(self.first(x).tanh())


def made(name: str, r: int = 4, **changes):
    """The PEFT model, its optimizer by the variant's own spec, and the spec's plan."""
    torch.manual_seed(2)
    variant = named(name, r)
    planned = plan(learning_rate=RATE, **changes)
    arguments = scheduled(variant.peft_arguments(), planned) | {"target_modules": ["first", "second"]}
    model = peft.get_peft_model(Two(), getattr(peft, variant.peft_class)(**arguments))
    told = spec(variant=name, r=r, lora_alpha=variant.lora_alpha, optimizer=variant.optimizer)
    return model, make_optimizer(model, told, planned)


def backward(model, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    model.zero_grad()
    model(torch.randn(16, 12, generator=generator)).square().mean().backward()


def steps(model, optimizer, count: int, first: int = 0):
    for number in range(first, first + count):
        backward(model, number)
        optimizer.step()


def parameters(model, part: str):
    return {name: p for name, p in model.named_parameters() if part in name}


def moved(model, part: str, before):
    return max(float((p - before[name]).abs().max()) for name, p in parameters(model, part).items())


def snapshot(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_lora_plus_moves_b_at_sixteen_times_the_schedule_and_a_at_it():
    model, optimizer = made("loraplus")
    with torch.no_grad():
        for factor in parameters(model, "lora_B").values():
            factor.fill_(0.1)  # else A has no gradient at the first step
    set_rate(optimizer, RATE / 2)
    before = snapshot(model)
    steps(model, optimizer, 1)
    assert moved(model, "lora_A", before) == pytest.approx(RATE / 2, rel=1e-2)
    assert moved(model, "lora_B", before) == pytest.approx(16 * RATE / 2, rel=1e-2)
    assert all(group["params"] for group in optimizer.param_groups)


def test_lora_fa_trains_b_alone_and_projects_the_update():
    model, optimizer = made("lorafa")
    before = snapshot(model)
    steps(model, optimizer, 3)
    assert moved(model, "lora_A", before) == 0.0
    assert moved(model, "lora_B", before) > RATE
    assert not any(p.requires_grad for p in parameters(model, "lora_A").values())


def test_riemannian_gradients_are_those_of_the_formula():
    model, optimizer = made("riemannian")
    with torch.no_grad():
        for factor in parameters(model, "lora_B").values():
            factor.normal_()
    backward(model)
    layer = model.base_model.model.first
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    damped = 0.01 * torch.eye(4)
    wanted_a = torch.linalg.inv(b.T @ b + damped) @ a.grad
    wanted_b = b.grad @ torch.linalg.inv(a @ a.T + damped)
    optimizer.step()
    torch.testing.assert_close(a.grad, wanted_a, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(b.grad, wanted_b, rtol=1e-3, atol=1e-6)


def test_adalora_ends_at_its_budget_and_stays_there(tmp_path):
    model, optimizer = made("adalora", total_steps=20)
    assert kept(model) == 0  # E starts at 0
    steps(model, optimizer, 2)
    assert kept(model) == 2 * 6
    steps(model, optimizer, 18, first=2)
    assert kept(model) == 2 * 4
    model.save_pretrained(str(tmp_path))
    again = peft.PeftModel.from_pretrained(Two(), str(tmp_path))
    x = torch.randn(5, 12)
    torch.testing.assert_close(again(x), model.eval()(x), rtol=1e-4, atol=1e-6)


def kept(model) -> int:
    """Triplets that are not masked."""
    return sum(int((e != 0).sum()) for e in parameters(model, "lora_E").values())


def test_adalora_resumes_with_what_its_allocator_knew():
    whole, optimizer = made("adalora", total_steps=20)
    steps(whole, optimizer, 20)
    half, optimizer = made("adalora", total_steps=20)
    steps(half, optimizer, 16)  # after the last allocation
    saved, weights = optimizer.state_dict(), snapshot(half)
    again, optimizer = made("adalora", total_steps=20)
    with torch.no_grad():
        for name, p in again.named_parameters():
            p.copy_(weights[name])
    optimizer.load_state_dict(saved)
    steps(again, optimizer, 4, first=16)
    for name, p in again.named_parameters():
        torch.testing.assert_close(p, dict(whole.named_parameters())[name], rtol=0, atol=0)


def test_adalora_s_penalty_enters_the_gradient():
    """The formula that PEFT adds to `outputs.loss`, with its weight 0.5."""
    model, optimizer = made("adalora")
    backward(model)
    plain = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    named_factors = parameters(model, "lora_A") | parameters(model, "lora_B")
    grams = [p @ p.T if "lora_A" in name else p.T @ p for name, p in named_factors.items()]
    penalty = sum((g - torch.eye(len(g))).norm() for g in grams) * 0.5 / len(grams)
    wanted = torch.autograd.grad(penalty, list(named_factors.values()))
    optimizer.step()
    for (name, p), gradient in zip(named_factors.items(), wanted, strict=True):
        torch.testing.assert_close(p.grad - plain[name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["lorafa", "riemannian", "adalora"])
def test_split_factors_are_refused(name):
    with pytest.raises(
        InputError, match="works at ZeRO stage 0 only, and the plan has stage 2; set `training.zero_stage` 0"
    ):
        made(name, zero_stage=2)


def test_an_unknown_optimizer_is_named():
    with pytest.raises(InputError, match="'sophia' of variant lora is unknown; known: adamw, lora"):
        make_optimizer(None, spec(optimizer={"name": "sophia"}), plan())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "stage"), [("loraplus", 0), ("lorafa", 0), ("riemannian", 0), ("adalora", 0), ("vera", 0)]
)
def test_two_real_ranks_train_with_it(name, stage, tiny_model_folder, tmp_path):
    """Under DeepSpeed, over gloo, the loss falls."""
    variant = named(name, 4)
    target = ["q_proj", "v_proj", "up_proj"]
    arguments = variant.peft_arguments() | {"target_modules": target, "task_type": "CAUSAL_LM"}
    adapter = spec(
        variant=name,
        r=4,
        lora_alpha=variant.lora_alpha,
        peft_class=variant.peft_class,
        peft_arguments=arguments,
        optimizer=variant.optimizer,
    )
    rate = 3e-4 if name == "loraplus" else 3e-3  # B at 16 times the rate
    told = job(
        tmp_path, tiny_model_folder, adapter=adapter, zero_stage=stage, total_steps=20, count=160, learning_rate=rate
    )
    result = launch.train(told, tmp_path)
    from lora_select.training.supervisor import metrics_file

    losses = [step["loss"] for step in metrics_file.read_metrics(tmp_path)]
    assert result.steps == 20 == len(losses)
    assert losses[-1] < losses[0] - 0.02
