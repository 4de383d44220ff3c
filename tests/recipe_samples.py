"""Orders for tests of the emitted files: the tiny model, rows of every kind, an adapter by name."""

import ast
import dataclasses
import json
from pathlib import Path

from training_jobs import MODULES, plan

from lora_select import models
from lora_select.data.intake import intake, read_canonical
from lora_select.recipes.recipe import Order
from lora_select.recipes.rows import read
from lora_select.records import AdapterSpec
from lora_select.variants import named

TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}


def chats(count: int = 24) -> list[dict]:
    """One turn, two turns, a system message, a tool call."""
    made = []
    for n in range(count):
        turns = [{"role": "user", "content": f"say {n}"}, {"role": "assistant", "content": f"{n}! " * (1 + n % 3)}]
        if n % 4 == 1:
            turns += [{"role": "user", "content": "again"}, {"role": "assistant", "content": f"{n}"}]
        if n % 4 == 2:
            turns.insert(0, {"role": "system", "content": "be brief"})
        row = {"messages": turns}
        if n % 4 == 3:
            turns[-1] = {"role": "assistant", "content": "", "tool_calls": [CALL]}
            row["tools"] = [TOOL]
        made.append(row)
    return made


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def spec(name: str, model: Path, r: int = 8) -> AdapterSpec:
    variant = named(name, r)
    shapes = [shape for layer, shape in models.linear_shapes(str(model)).items() if layer.endswith(MODULES)]
    return variant.spec(
        targets="all-linear",
        target_modules=MODULES,
        learning_rate=2e-3,
        num_parameters=variant.shared_parameters + sum(variant.num_parameters(shape) for shape in shapes),
        placed={"target_modules": list(MODULES), "task_type": "CAUSAL_LM"},
    )


def order(folder: Path, model: Path, name: str = "lora", *, rows: list[dict] | None = None, **changes) -> Order:
    """The order of one adapter on the tiny model; the intake works in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    source = write_jsonl(folder / "rows.jsonl", rows or chats())
    dataset = intake(source=str(source), name="t", folder=folder, eval_fraction=0.2)
    base = models.resolve(str(model))
    made = spec(name, model)
    settings = {"num_processes": 1, "micro_batch_size": 4, "gradient_accumulation_steps": 2, "total_steps": 3}
    values = {
        "spec": made,
        "base": base,
        "plan": plan(learning_rate=made.learning_rate, warmup_steps=1, weight_decay=0.01, **settings),
        "rows": read(dataset, folder, base),
        "quantize": None,
        "serve": None,
        "max_length": 512,
        "start": None,
    }
    return Order(**(values | changes))


KEPT = 8


def keeping(folder: Path, model: Path) -> Order:
    """An order of a plan that keeps 8 rows, looks at them every 5 steps, and stops after 2 that were worse."""
    plain = order(folder, model, rows=chats(60))
    dataset = intake(source=str(folder / "rows.jsonl"), name="t", folder=folder, eval_fraction=0.2)
    ids = [row_id for row_id, _ in read_canonical(folder / dataset.train_file.path)]
    plan = dataclasses.replace(plain.plan, validation_rows=KEPT, validation_every=5, patience=2)
    rows = read(dataset, folder, plain.base, frozenset(ids[::2][:KEPT]))
    return dataclasses.replace(plain, plan=plan, rows=rows)


def write_spectra(path: Path, model: Path) -> Path:
    """Tensors that a spectral record would hold: random orthonormal directions of every adapted layer."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    found = {}
    for layer, (m, n) in models.linear_shapes(str(model)).items():
        if layer.endswith(MODULES):
            k = min(m, n, 32)
            found[f"{layer}.activation_vectors"] = torch.linalg.qr(torch.randn(n, k))[0].contiguous()
            found[f"{layer}.activation_values"] = torch.linspace(2, 0.1, k)
            found[f"{layer}.gradient_left"] = torch.linalg.qr(torch.randn(m, k))[0].contiguous()
            found[f"{layer}.gradient_right"] = torch.linalg.qr(torch.randn(n, k))[0].contiguous()
            found[f"{layer}.gradient_values"] = torch.linspace(3, 0.1, k)
    save_file(found, path)
    return path


def unsloth_calls(script: str) -> dict[str, dict]:
    """Keyword arguments of the two calls of FastLanguageModel in a script, by the method."""
    found = {}
    for node in ast.walk(ast.parse(script)):
        function = getattr(node, "func", None)
        if isinstance(function, ast.Attribute) and getattr(function.value, "id", "") == "FastLanguageModel":
            (told,) = [keyword.value for keyword in node.keywords if keyword.arg is None]
            pairs = zip(told.keys, told.values, strict=True)
            found[function.attr] = {ast.literal_eval(k): ast.unparse(v) for k, v in pairs}
    return found
