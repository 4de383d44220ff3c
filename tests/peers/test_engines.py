"""Exported adapters in the engines' own hands: logits and greedy text of 20 prompts against transformers and PEFT.

`make peers` makes the environments; llama.cpp is built from source. Largest difference of a logit allowed: 1 % of what the adapter
moves the logits by, both in float32.
"""

import ast
import importlib.util
import json
import os
import subprocess
import sys
import types
import unittest.mock
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import quantised
from benchmarks.peers.base_gguf import write_base_gguf
from lora_select import models, serving
from lora_select.data.labels.tokens import TokenRow
from lora_select.evaluation.model_losses import row_losses
from lora_select.export.command import export
from lora_select.models import merging, rounding
from lora_select.retention import filter as filtering
from lora_select.retention import forms, moments
from lora_select.retention.bench import filter_updates
from lora_select.variants import named

pytestmark = pytest.mark.peers
PEERS = Path(os.environ.get("LORA_SELECT_PEERS", Path(__file__).parents[2] / ".peers"))
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PROMPTS, NEW = 20, 8
TOLERANCE = 1e-2
ADAPTERS = {
    "lora": {},
    "rslora": {},
    "eva": {"init_lora_weights": "eva"},
    "pissa": {"init_lora_weights": "pissa"},
    "miss": {},
    "dora": {},
    "patterns": {"rank_pattern": {"q_proj": 6}, "alpha_pattern": {"down_proj": 20}},
}
WHOLE = {"dora": 64}
"""Ranks at which the export is exact: DoRA's update has every rank that its layer has."""
CASES = [
    *((name, "tiny") for name in (*ADAPTERS, "filtered")),
    *((name, "sample:smollm2-135m-instruct") for name in ("lora", "pissa", "filtered")),
]
"""The real model takes a minute each: one plain, one converted, one filtered."""


def in_env(tool: str, script: str, *arguments: str) -> subprocess.CompletedProcess:
    python = PEERS / tool / "bin" / "python"
    if not python.is_file():
        pytest.skip(f"{tool} is not installed: make peers (or name its environments' folder in LORA_SELECT_PEERS)")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [str(python), script, *arguments]
    return subprocess.run(command, env=clean | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=False)


def saved(base: Path, folder: Path, name: str, r: int = 4):
    """The PEFT folder of an adapter moved away from its start, and the loaded model."""
    import peft

    variant = named("lora" if name == "patterns" else name, r)
    arguments = variant.peft_arguments() | {"target_modules": MODULES, "task_type": "CAUSAL_LM"} | ADAPTERS[name]
    start = arguments.get("init_lora_weights")
    if start == "eva":
        arguments["init_lora_weights"] = True  # its directions need data; what is served is the trained folder
    config = getattr(peft, variant.peft_class)(base_model_name_or_path=str(base), **arguments)
    torch.manual_seed(0)
    model = peft.get_peft_model(models.load_model(str(base)), config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.02 * torch.randn_like(parameter)
    model.save_pretrained(str(folder))
    if start == "eva":
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"init_lora_weights": "eva"}))
    return models.with_adapter(models.load_model(str(base)), folder)


def filtered(base: Path, folder: Path, r: int = 4):
    """Plain LoRA whose directions that "general" tokens use are taken back, written as retention writes it, and the loaded model."""
    saved(base, folder.with_name("raw"), "lora", r)
    model = models.load_model(str(base))
    form = forms.read(folder.with_name("raw"), model, load_base=lambda: model)
    layers = {name: module for name, module in forms.linear_modules(model).items() if name in form.updates}
    task, general = (moments.stream(model, layers, token_rows(base, *bounds), 3) for bounds in ((4, 60), (60, 260)))
    pairs, _, left = filtering.pairs(task, [general])
    assert not left
    shared: dict[str, list[str]] = {}
    for name in form.updates:
        shared.setdefault(task.owner[name], []).append(name)
    new, written = forms.loadable(form, filter_updates(form.updates, pairs, shared, 0.5))
    forms.write(form, new, folder, str(base), written)
    return models.with_adapter(models.load_model(str(base)), folder)


def token_rows(base: Path, low: int, high: int) -> list[TokenRow]:
    """Twice as many tokens as the widest input has directions."""
    count = 2 * int(json.loads((base / "config.json").read_text())["intermediate_size"]) // 64
    ids = torch.randint(low, high, (count, 64), generator=torch.Generator().manual_seed(low)).tolist()
    return [TokenRow(f"{low}-{n}", tuple(row), (True,) * 64) for n, row in enumerate(ids)]


def prompts(base: Path) -> list[list[int]]:
    size = int(json.loads((base / "config.json").read_text())["vocab_size"])
    return torch.randint(4, size, (PROMPTS, 12), generator=torch.Generator().manual_seed(1)).tolist()


def expected(model, ids) -> tuple[np.ndarray, list[list[int]]]:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor(ids)).logits.float()
        told = torch.tensor(ids)
        for _ in range(NEW):
            told = torch.cat([told, model(input_ids=told).logits[:, -1:].argmax(-1)], dim=1)
    return logits.numpy(), told[:, -NEW:].tolist()


@pytest.fixture(scope="session")
def bases(tiny_model_folder, tmp_path_factory):
    """Folder and GGUF of each base, made when first asked for."""
    made: dict[str, tuple[Path, Path]] = {}

    def of(name: str) -> tuple[Path, Path]:
        if name not in made:
            folder = tiny_model_folder if name == "tiny" else Path(models.resolve(name).path)
            made[name] = folder, write_base_gguf(folder, tmp_path_factory.mktemp("gguf") / "base.gguf")
        return made[name]

    return of


def judged(tool: str, base: Path, adapter: Path | None, model, ids, tmp_path: Path) -> tuple[float, float, float]:
    """What the engine makes of the adapter: largest difference of a logit, what the adapter moves, share of equal greedy tokens."""
    (tmp_path / "ids.json").write_text(json.dumps(ids))
    script, out = Path(__file__).with_name(f"in_{tool}.py"), tmp_path / f"{tool}.npy"
    more = [str(adapter)] if adapter else []
    done = in_env(tool, str(script), str(base), str(tmp_path / "ids.json"), str(out), str(NEW), *more)
    assert done.returncode == 0, done.stderr[-3000:]
    logits, text = expected(model, ids)
    with model.disable_adapter():
        moved = float(np.abs(expected(model, ids)[0] - logits).max())
    theirs = json.loads(out.with_suffix(".json").read_text())
    same = float(np.mean(np.array(theirs) == np.array(text)))
    found = float(np.abs(np.load(out) - logits).max()), moved, same
    print(
        f"{tool} {adapter and adapter.parent.name}: difference {found[0]:.2g} of {found[1]:.3g}, {found[2]:.3f} of tokens"
    )
    return found


def with_rope_at_the_top(base: Path, folder: Path) -> Path:
    """The base as publishers wrote it before transformers 5: MLX-LM's Llama takes another rotary embedding of what transformers 5 writes."""
    folder.mkdir()
    for file in base.iterdir():
        (folder / file.name).symlink_to(file)
    merging.spell_rope(folder)
    return folder


@pytest.mark.parametrize("tool", ["llamacpp", "mlx"])
@pytest.mark.parametrize(("name", "source"), CASES)
def test_the_engine_computes_the_exported_adapter_needs_peers(bases, tmp_path, tool, name, source):
    base, gguf = bases(source)
    folder = tmp_path / "peft"
    reference = filtered(base, folder) if name == "filtered" else saved(base, folder, name)
    engine = {"llamacpp": "llama.cpp", "mlx": "mlx"}[tool]
    in_env(tool, "-c", "pass")
    made = export(folder, None, tmp_path / "out", rank=WHOLE.get(name), max_error=1e-4, serve=engine)
    file = tmp_path / "out" / "adapter.gguf" if tool == "llamacpp" else tmp_path / "out"
    served_base = gguf if tool == "llamacpp" else with_rope_at_the_top(base, tmp_path / "base")
    difference, moved, same = judged(tool, served_base, file, reference, prompts(base), tmp_path)
    assert made.function_change > 0
    assert difference <= TOLERANCE * moved
    assert same >= 0.97  # a tie within the tolerance may fall the other way, and what follows differs


def test_a_merged_model_in_llama_cpps_own_bits_is_measured_needs_peers(bases, tmp_path):
    """Row by row beside the merged model in float32: 8 bits stay near it, 4 bits do not stay as near."""
    base, _ = bases("tiny")
    models.write_merged(saved(base, tmp_path / "peft", "lora"), str(base), tmp_path / "merged")
    rows = token_rows(base, 4, 260)
    exact = np.array(row_losses(models.load_model(str(tmp_path / "merged")), rows, 3, 4, "cpu"))
    in_env("llamacpp", "-c", "pass")
    off = {
        form: float(
            np.abs(np.array(quantised.by_llamacpp(tmp_path / "merged", form, PEERS, rows, tmp_path)) - exact).max()
        )
        for form in quantised.GGUF
    }
    assert 0 < off["Q8_0"] < off["Q4_K_M"] < 0.1 * exact.max()
    assert off["Q8_0"] < 0.01 * exact.max()


@pytest.mark.parametrize("form", rounding.GGUF_FORMS)
def test_weights_are_rounded_as_llama_cpp_stores_them_needs_peers(bases, tmp_path, form):
    """Tensor by tensor the numbers in the file that llama.cpp quantised, and nearly its losses: it rounds activations too."""
    from gguf import GGUFReader, dequantize

    base, _ = bases("tiny")
    rows = token_rows(base, 4, 260)
    in_env("llamacpp", "-c", "pass")
    theirs = quantised.by_llamacpp(base, form.upper(), PEERS, rows, tmp_path)
    model = models.load_model(str(base))
    rounding.round_weights(model, form)
    ours = row_losses(model, rows, 3, 4, "cpu")
    model.save_pretrained(tmp_path / "rounded")
    file = write_base_gguf(tmp_path / "rounded", tmp_path / "rounded.gguf")
    stored, expected = (
        {tensor.name: dequantize(tensor.data, tensor.tensor_type) for tensor in GGUFReader(one).tensors}
        for one in (tmp_path / f"{base.name}-{form.upper()}.gguf", file)
    )
    assert set(stored) == set(expected)
    for name, values in stored.items():
        np.testing.assert_array_equal(values, expected[name], err_msg=name)
    assert np.abs(np.array(theirs) - np.array(ours)).max() < 0.01 * max(theirs)


@pytest.mark.parametrize(("name", "right"), [("lora", True), ("rslora", False), ("patterns", False), ("pissa", False)])
def test_a_raw_folder_through_llama_cpps_own_converter_needs_peers(bases, tmp_path, name, right):
    """Which folders need the safe form: rsLoRA, alpha patterns and a start off the base come out as other functions, in silence."""
    base, gguf = bases("tiny")
    reference = saved(base, tmp_path / "peft", name)
    raw = official(base, tmp_path / "peft", tmp_path / "raw.gguf")
    difference, moved, _ = judged("llamacpp", gguf, raw, reference, prompts(base), tmp_path)
    assert (difference <= TOLERANCE * moved) == right


def official(base: Path, lora: Path, out: Path) -> Path:
    script = PEERS / "llamacpp" / "llama.cpp" / "convert_lora_to_gguf.py"
    done = in_env("llamacpp", str(script), "--base", str(base), "--outfile", str(out), str(lora))
    assert done.returncode == 0, done.stderr[-2000:]
    return out


def other_model(folder: Path, architecture: str) -> Path:
    """A tiny model of another family, for its names alone."""
    import transformers

    kind = getattr(transformers, architecture)
    config = kind.config_class(
        vocab_size=260,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        pad_token_id=3,
        max_position_embeddings=512,
    )
    torch.manual_seed(0)
    kind(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("architecture", sorted(serving.llamacpp.ARCHITECTURES))
def test_our_gguf_is_that_of_llama_cpps_converter_tensor_by_tensor_needs_peers(
    tiny_model_folder, tmp_path, architecture
):
    from gguf import GGUFReader

    base = other_model(tmp_path / "base", architecture)
    for file in tiny_model_folder.glob("*token*"):
        (base / file.name).write_bytes(file.read_bytes())
    saved(base, tmp_path / "peft", "lora")
    export(tmp_path / "peft", "lora", tmp_path / "lora", rank=None, max_error=1e-4)
    export(tmp_path / "peft", "gguf", tmp_path / "out", rank=None, max_error=1e-4)
    readers = [
        GGUFReader(file)
        for file in (tmp_path / "out" / "adapter.gguf", official(base, tmp_path / "lora", tmp_path / "raw.gguf"))
    ]
    ours, theirs = ({tensor.name: np.array(tensor.data) for tensor in reader.tensors} for reader in readers)
    assert set(ours) == set(theirs)
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name])
    for key in ("general.architecture", "general.type", "adapter.type", "adapter.lora.alpha"):
        assert readers[0].fields[key].contents() == readers[1].fields[key].contents()


def module(file: Path, **stubs):
    """A module of an engine by its file, beside stubs of what it imports from the engine's GPU code."""
    if not file.is_file():
        pytest.skip(f"{file} is not there: make peers")
    named = {name.replace("__", "."): types.SimpleNamespace(**values) for name, values in stubs.items()}
    spec = importlib.util.spec_from_file_location(file.stem, file)
    found = importlib.util.module_from_spec(spec)
    with unittest.mock.patch.dict(sys.modules, named | {file.stem: found}):  # what was imported before is put back
        spec.loader.exec_module(found)
    return found


def ranks_of(file: Path) -> tuple[int, ...]:
    """`MaxLoRARanks` in vLLM's source."""
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "MaxLoRARanks":
            return tuple(ast.literal_eval(node.value.slice))  # pyright: ignore[reportAttributeAccessIssue]
    raise AssertionError("MaxLoRARanks has moved")


def test_vllms_reader_takes_the_export_and_refuses_what_we_say_it_refuses_needs_peers(tiny_model_folder, tmp_path):
    root = PEERS / "vllm" / "vllm"
    logger = types.SimpleNamespace(info_once=lambda *_: None)
    helper = module(
        root / "lora" / "peft_helper.py",
        vllm={},
        vllm__config={},
        vllm__config__lora={"LoRAConfig": object},
        vllm__logger={"init_logger": lambda _: logger},
        regex={"match": __import__("re").match},
    ).PEFTHelper
    assert ranks_of(root / "config" / "lora.py") == serving.vllm.RANKS
    for name in ("lora", "rslora", "eva", "pissa", "miss"):
        saved(tiny_model_folder, tmp_path / name, name)
        export(tmp_path / name, None, tmp_path / f"{name}-out", rank=None, max_error=1e-4, serve="vllm")
        read = helper.from_local_dir(str(tmp_path / f"{name}-out"), None)
        slots = types.SimpleNamespace(max_lora_rank=serving.ENGINES["vllm"].slot(read.r))
        read.validate_legal(slots)
        assert read.vllm_lora_scaling_factor == 1.0
        with pytest.raises(ValueError, match="greater than max_lora_rank"):
            read.validate_legal(types.SimpleNamespace(max_lora_rank=1))
    for name, words in (("dora", "DoRA"), ("pissa", "pissa")):
        saved(tiny_model_folder, tmp_path / f"{name}-raw", name)
        with pytest.raises(ValueError, match=words):
            helper.from_local_dir(str(tmp_path / f"{name}-raw"), None).validate_legal(slots)


def test_sglangs_reader_takes_the_export_and_would_make_rslora_too_weak_needs_peers(tiny_model_folder, tmp_path):
    lora = module(PEERS / "sglang" / "sglang" / "srt" / "lora" / "lora_config.py")
    saved(tiny_model_folder, tmp_path / "raw", "rslora")
    export(tmp_path / "raw", None, tmp_path / "out", rank=None, max_error=1e-4, serve="sglang")
    read, raw = lora.LoRAConfig(str(tmp_path / "out")), lora.LoRAConfig(str(tmp_path / "raw"))
    assert (read.lora_alpha / read.r, read.use_dora, sorted(read.target_modules)) == (1.0, False, sorted(MODULES))
    folder = serving.read_folder(tmp_path / "raw")
    right = folder.scale("model.layers.0.self_attn.q_proj")
    assert raw.lora_alpha / raw.r == pytest.approx(right / 2)  # sqrt(r) = 2: what it makes of the folder as it was
