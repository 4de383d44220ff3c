"""Config is checked once, at the edge, and every fault is named with its place and the way out."""

import subprocess
import sys
from pathlib import Path

import pytest

from flows import settings
from lora_select import config
from lora_select.errors import InputError
from lora_select.training.machine import Machine

MINIMAL = "name: mine\nbase_model: {source: m}\ndataset: {source: d}\n"
ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "infra" / "runs").glob("*.yaml"))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(MINIMAL)
    return path


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_valid(path):
    assert config.load(str(path)).name == path.stem


def test_overrides_are_typed_yaml(file):
    loaded = config.load(str(file), ["training.epochs=2", "--training.zero_stage=2", "selection.claims={a: true}"])
    assert (loaded.training.epochs, loaded.training.zero_stage, loaded.selection.claims) == (2.0, 2, {"a": True})


def test_unknown_keys_name_the_nearest_field_all_at_once(file):
    with pytest.raises(InputError) as caught:
        config.load(str(file), ["training.epoch=2", "dataset.max_len=9", "training.warmup_fraction=2"])
    message = str(caught.value)
    assert "`training.epoch` is not a field; did you mean `epochs`?" in message
    assert "did you mean `max_length`?" in message
    assert "`training.warmup_fraction`" in message
    assert "got 2" in message


def test_missing_file_names_a_near_one(file):
    with pytest.raises(InputError, match="did you mean .*mine.yaml"):
        config.load(str(file.with_name("mime.yaml")))


@pytest.mark.parametrize(
    ("text", "words"),
    [("a: [", "not valid YAML"), ("- 1", "must hold a mapping"), ("name: x\ndataset: {source: d}", "`base_model`")],
)
def test_broken_files(file, text, words):
    file.write_text(text)
    with pytest.raises(InputError, match=words):
        config.load(str(file))


@pytest.mark.parametrize(
    ("override", "words"), [("training.epochs", "must read"), ("name.x=1", "not a section"), ("seed=[", "YAML")]
)
def test_broken_overrides(file, override, words):
    with pytest.raises(InputError, match=words):
        config.load(str(file), [override])


def test_folders_and_addresses_do_not_change_a_run(file):
    plain = config.load(str(file)).digested()
    assert config.load(str(file), ["runs_dir=elsewhere", "tracking.uri=http://h:1"]).digested() == plain
    assert config.load(str(file), ["seed=1"]).digested() != plain


def test_a_quantised_base_reaches_selection_plan_training_and_evaluation(file):
    loaded = config.load(str(file), ["base_model.quantize=nf4"])
    assert settings.constraints(loaded, 100).quantized_base == "nf4"
    assert settings.plan(loaded, Machine("cpu", 1, 2, 24.0, False))["training"]["quantize"] == "nf4"
    assert settings.train(loaded) == {"quantized_base": "nf4"}
    assert settings.evaluate(loaded, "cpu")["options"]["quantize"] == "nf4"
    with pytest.raises(InputError, match=r"`base_model.quantize`: .*'nf4' or 'int8'.*got 'fp4'"):
        config.load(str(file), ["base_model.quantize=fp4"])


def test_a_flow_whose_stages_are_all_finished_imports_no_torch():
    """It would cost seconds of every start; stages import what they need when they run."""
    code = (
        "import sys, flows.finetune; print([name for name in ('torch', 'transformers', 'peft') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")
