"""The emitted files in the tools' own hands: `make peers` makes an environment for each, `make test-peers` runs this.

Each tool parses its file, tokenises and masks the rows with its own code, and trains three steps by its own command.
"""

import ast
import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from recipe_samples import chats, keeping, order, unsloth_calls, write_spectra

from lora_select import models
from lora_select.data.intake import read_canonical
from lora_select.data.labels.tokenize import tokenize
from lora_select.recipes import emit

pytestmark = pytest.mark.peers
ROOT = Path(__file__).parents[2]
PEERS = Path(os.environ.get("LORA_SELECT_PEERS", ROOT / ".peers"))
TOOLS = ("trl", "llamafactory", "axolotl", "ms-swift")
COMMANDS = {
    "trl": ["train.py"],
    "llamafactory": [
        "-c",
        "import sys; sys.argv = ['cli', 'train', 'train.yaml']; from llamafactory.cli import main; main()",
    ],
    "axolotl": ["-m", "axolotl.cli.train", "train.yaml"],
    "ms-swift": [
        "-c",
        "import sys; sys.argv = ['swift', 'sft', 'train.yaml']; from swift.cli.main import cli_main; cli_main()",
    ],
}
"""What the tools' console scripts do, by the environment's python."""
TEXTS = [{"text": f"number {n} and some more"} for n in range(20)]


def python_of(tool: str) -> str:
    found = PEERS / tool / "bin" / "python"
    if not found.is_file():
        pytest.skip(f"{tool} is not installed: make peers (or name its environments' folder in LORA_SELECT_PEERS)")
    return str(found)


def run(tool: str, arguments: list[str], folder: Path, **more: str) -> str:
    """Standard output of the tool's python in an emitted folder."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    quiet = {"HF_HUB_OFFLINE": "1", "AXOLOTL_DO_NOT_TRACK": "1", "DO_NOT_TRACK": "1", "WANDB_DISABLED": "true"}
    path = f"{PEERS / tool / 'bin'}:{os.environ['PATH']}"
    done = subprocess.run(
        [python_of(tool), *arguments],
        cwd=folder,
        env=clean | quiet | {"PATH": path} | more,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-1000:]
    return done.stdout


@pytest.mark.parametrize("rows", [None, TEXTS], ids=["chats", "texts"])
@pytest.mark.parametrize("tool", TOOLS)
def test_the_tool_reads_the_chosen_numbers_and_sees_the_measured_tokens_and_labels_needs_peers(
    tiny_model_folder, tmp_path, tool, rows
):
    python_of(tool)
    name = "lora" if tool == "trl" or rows else "loraplus"
    told = order(tmp_path / "rows", tiny_model_folder, name, rows=rows)
    emit(told, [tool], tmp_path / "none", tmp_path)
    run(tool, [str(Path(__file__).with_name("in_env.py")), tool], tmp_path / tool)
    seen = json.loads((tmp_path / tool / "seen.json").read_text())
    found, plan = seen["found"], told.plan
    assert (found["r"], found["alpha"]) == (told.spec.r, told.spec.lora_alpha)
    assert found["targets"] == sorted(told.spec.target_modules)
    assert found["rate"] == told.spec.learning_rate
    assert found["batch"] == plan.effective_batch_size
    assert (found["warmup"], found["decay"], found["schedule"]) == (plan.warmup_steps, plan.weight_decay, "cosine")
    assert found["ratio"] == (16.0 if name == "loraplus" else None)
    assert not found["start"]
    tokenizer = models.load_tokenizer(str(tiny_model_folder))
    for split in ("train", "eval"):
        measured = sorted(_measured(tmp_path / "rows" / f"{split}.parquet", tokenizer))
        got = sorted((row["input_ids"], _unshifted(row["labels"])) for row in seen[split])
        assert got == measured


@pytest.mark.parametrize("tool", ["llamafactory", "axolotl", "ms-swift"])
def test_the_tool_reads_when_to_look_at_kept_rows_and_when_to_stop_needs_peers(tiny_model_folder, tmp_path, tool):
    python_of(tool)
    told = keeping(tmp_path / "rows", tiny_model_folder)
    emit(told, [tool], tmp_path / "none", tmp_path)
    run(tool, [str(Path(__file__).with_name("in_env.py")), tool], tmp_path / tool)
    seen = json.loads((tmp_path / tool / "seen.json").read_text())
    assert seen["found"]["patience"] == 2
    assert seen["found"]["looks"] == [5, 5, True, "eval_loss"]
    assert len(seen["eval"]) == len(told.rows.validation)


def _measured(file: Path, tokenizer) -> list[tuple[list[int], list[int]]]:
    """Ids and labels up to the last label, as the profile and the spectral pass saw them."""
    made = []
    for row_id, row in read_canonical(file):
        whole = tokenize(row_id, row, tokenizer, 10_000).row
        end = max(i for i, learnt in enumerate(whole.label_mask) if learnt) + 1
        ids, mask = whole.input_ids[:end], whole.label_mask[:end]
        made.append((list(ids), [token if learnt else -100 for token, learnt in zip(ids, mask, strict=True)]))
    return made


def _unshifted(labels: list[int]) -> list[int]:
    """The first token's label is never used: nothing predicts it."""
    return [-100, *labels[1:]]


@pytest.mark.parametrize("tool", TOOLS)
def test_the_tool_trains_from_the_start_that_was_chosen_needs_peers(tiny_model_folder, tmp_path, tool):
    from safetensors.torch import load_file

    python_of(tool)
    told = order(tmp_path / "rows", tiny_model_folder, "eva")
    emit(told, [tool], write_spectra(tmp_path / "spectra.safetensors", tiny_model_folder), tmp_path)
    run(tool, COMMANDS[tool], tmp_path / tool)
    start = load_file(tmp_path / tool / "start" / "adapter_model.safetensors")
    saved = [file for file in (tmp_path / tool).rglob("adapter_model.safetensors") if file.parent.name != "start"]
    assert saved
    trained = load_file(max(saved, key=lambda file: file.stat().st_mtime))
    assert set(trained) == set(start)
    steps, rate = 3, told.spec.learning_rate
    for name, tensor in trained.items():
        moved = (tensor - start[name]).abs().max()
        assert moved <= 1.1 * steps * rate  # three steps of Adam; another start is off by 0.1
        assert moved > 0 or "lora_A" in name


def losses_of(log: str) -> list[float]:
    return [float(found) for found in re.findall(r"\{'loss': '?([0-9.]+)", log)]


def test_trls_script_on_two_gloo_ranks_takes_the_same_steps_needs_peers(tiny_model_folder, tmp_path):
    """By accelerate's launcher; the losses agree to what is printed, four digits. All steps are whole: 24 rows, eight a step."""
    python_of("trl")
    found = []
    for name, launcher in (
        ("one", ["train.py"]),
        (
            "two",
            ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1", "train.py"],
        ),
    ):
        told = order(tmp_path / f"rows-{name}", tiny_model_folder, rows=chats(37))
        assert len(told.rows.train) == 24
        emit(told, ["trl"], tmp_path / "none", tmp_path / name)
        found.append(losses_of(run("trl", launcher, tmp_path / name / "trl")))
    assert len(found[0]) == 3
    assert found[1] == pytest.approx(found[0], abs=2e-3)


SFT = "import sys; sys.argv[0] = 'trl'; from trl.cli import main; main()"
"""What TRL's console script does."""
PARSED = """
import json
from trl import get_dataset, get_peft_config
from trl.scripts.sft import make_parser
script, training, model, dataset = make_parser().parse_args_and_config(["--config", "sft.yaml"])
adapter = get_peft_config(model)
found = {"r": adapter.r, "alpha": adapter.lora_alpha, "targets": sorted(adapter.target_modules), "dora": adapter.use_dora}
found |= {"rate": training.learning_rate, "warmup": training.warmup_steps, "decay": training.weight_decay}
found |= {"batch": training.per_device_train_batch_size * training.gradient_accumulation_steps}
found |= {"data": script.dataset_name, "length": training.max_length, "packing": training.packing}
json.dump(found, open("parsed.json", "w"))
"""


def test_trls_parser_reads_the_command_s_config_as_it_was_meant_needs_peers(tiny_model_folder, tmp_path):
    python_of("trl")
    told = order(tmp_path / "rows", tiny_model_folder, "dora")
    emit(told, ["trl"], tmp_path / "none", tmp_path)
    run("trl", ["-c", PARSED], tmp_path / "trl")
    found, spec, plan = json.loads((tmp_path / "trl" / "parsed.json").read_text()), told.spec, told.plan
    assert (found["r"], found["alpha"], found["dora"]) == (spec.r, spec.lora_alpha, True)
    assert found["targets"] == sorted(spec.target_modules)
    assert (found["rate"], found["warmup"], found["decay"]) == (
        spec.learning_rate,
        plan.warmup_steps,
        plan.weight_decay,
    )
    assert found["batch"] == plan.effective_batch_size
    assert (found["data"], found["length"], found["packing"]) == ("tokens", None, False)


def test_trl_sft_takes_the_script_s_steps_needs_peers(tiny_model_folder, tmp_path):
    """The losses of three steps; the adapters' random A differ, and B is zero at the first step."""
    python_of("trl")
    emit(order(tmp_path / "rows", tiny_model_folder), ["trl"], tmp_path / "none", tmp_path)
    by_script = losses_of(run("trl", ["train.py"], tmp_path / "trl"))
    by_command = losses_of(run("trl", ["-c", SFT, "sft", "--config", "sft.yaml"], tmp_path / "trl"))
    assert len(by_script) == len(by_command) == 3
    assert by_command[0] == pytest.approx(by_script[0], abs=2e-3)
    assert by_command == pytest.approx(by_script, abs=2e-2)
    assert list((tmp_path / "trl" / "output").rglob("adapter_model.safetensors"))


WATCHED = """
import json, runpy, sys
import lora_select.callbacks as callbacks

made = runpy.run_path("train.py", run_name="script")
tokenizer = made["AutoTokenizer"].from_pretrained(made["MODEL"])
arguments = made["SFTConfig"](**made["ARGUMENTS"] | {"report_to": "wandb"})
rows = made["rows"]("train.jsonl", tokenizer)
trainer = made["SFTTrainer"](model=made["adapted_model"](), args=arguments, train_dataset=rows, eval_dataset=rows, processing_class=tokenizer)
seen = callbacks.watch(trainer, validation=[{"prompt": "say 1", "completion": "1!"}], every=2, reference_tokens=256)
trainer.train()
import wandb
json.dump({"history": seen.history, "summary": dict(wandb.run.summary), "mode": wandb.run.settings.mode}, open("watched.json", "w"))
"""


def test_the_callback_in_trls_trainer_reports_to_wandb_offline_needs_peers(tiny_model_folder, tmp_path):
    python_of("trl")
    emit(order(tmp_path / "rows", tiny_model_folder), ["trl"], tmp_path / "none", tmp_path)
    (tmp_path / "trl" / "watched.py").write_text(WATCHED)
    offline = {"WANDB_MODE": "offline", "WANDB_DISABLED": "false", "WANDB_SILENT": "true", "PYTHONPATH": str(ROOT)}
    run("trl", ["watched.py"], tmp_path / "trl", **offline)
    seen = json.loads((tmp_path / "trl" / "watched.json").read_text())
    assert [point["step"] for point in seen["history"]] == [0, 2, 3]
    assert seen["mode"] == "offline"
    assert seen["summary"]["eval/validation_loss"] == pytest.approx(seen["history"][-1]["eval_validation_loss"])
    assert seen["summary"]["eval/forgetting"] == pytest.approx(seen["history"][-1]["eval_forgetting"])
    assert list((tmp_path / "trl").glob("wandb/offline-run-*/*.wandb"))


def test_unsloths_functions_take_what_its_script_gives_them_needs_unsloths_source(tiny_model_folder, tmp_path):
    """Their signatures, read off the wheel's source."""
    folder = PEERS / "unsloth" / "unsloth" / "models"
    if not folder.is_dir():
        pytest.skip("Unsloth's source is not there: make peers")
    emit(order(tmp_path / "rows", tiny_model_folder), ["unsloth"], tmp_path / "none", tmp_path)
    given = unsloth_calls((tmp_path / "unsloth" / "train.py").read_text())
    assert set(given["from_pretrained"]) <= parameters(folder / "loader.py", "FastLanguageModel", "from_pretrained")
    assert set(given["get_peft_model"]) <= parameters(folder / "llama.py", "FastLlamaModel", "get_peft_model")


def parameters(file: Path, kind: str, method: str) -> set[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ClassDef) and node.name == kind:
            for one in node.body:
                if isinstance(one, ast.FunctionDef) and one.name == method:
                    return {argument.arg for argument in (*one.args.args, *one.args.kwonlyargs)}
    raise AssertionError(f"{kind}.{method} has moved")
