"""Config is checked once, at the edge, and every fault is named with its place and the way out."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lora_select import config
from lora_select.config import words
from lora_select.errors import InputError
from lora_select.pipeline.run import Run

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
    loaded = config.load(
        str(file),
        ["training.epochs=2", "--training.zero_stage=2", "selection.claims={tangent_share_predicts_short_runs: true}"],
    )
    assert (loaded.training.epochs, loaded.training.zero_stage, loaded.selection.claims) == (
        2.0,
        2,
        {"tangent_share_predicts_short_runs": True},
    )


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


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("selection.variant=lorra", "did you mean lora"),
        ("selection.claims={tangent: true}", "is not a claim"),
        ("selection.variant=ia3 --selection.r=4", "has no rank"),
        ("training.memory=24", "such as 24GiB"),
        ("training.memory=-1GiB", "such as 24GiB"),
        ("training.memory=24XB", "such as 24GiB"),
        ("selection.race_budget=5 percent", "at least 0%"),
        ("selection.race_budget=five", "at least 0%"),
        ("selection.race_budget=-1", "race_budget"),
        ("training.effective_batch_size=8", "`training.effective_batch_size` is called `batch_size`"),
        ("recipes.trainers=[trll]", "`recipes.trainers.0`"),
        ("training.epochs=-1", "`training.epochs`: input should be 'auto', or greater than 0, got -1$"),
        ("retention.references=[a.jsonl, a.jsonl]", "name a.jsonl twice"),
        ("retention.judges=[prose]", "name prose twice"),
        ("promotion.max_forgetting={prosa: 0.1}", r"yaml: `promotion.max_forgetting` limits prosa.* are prose, code$"),
        ("promotion.max_forgetting={code: 0.1} --retention.mode=off", "limits code.* the sets are reference text"),
    ],
)
def test_what_is_wrong_with_a_constraint_is_said_when_the_config_is_loaded(file, override, words):
    with pytest.raises(InputError, match=words):
        config.load(str(file), override.split(" --"))


def test_off_is_a_word_though_yaml_reads_it_as_false(file):
    loaded = config.load(str(file), ["retention.mode=off", "gate.actions={near-duplicates: off}"])
    assert (loaded.retention.mode, loaded.gate.actions) == ("off", {"near-duplicates": "off"})


def test_units_and_shares_are_read(file):
    loaded = config.load(str(file), ["training.memory=512MiB", "selection.race_budget=300%"])
    assert (loaded.training.memory, loaded.selection.race_budget) == (0.5, 3.0)
    assert config.parse(loaded.model_dump(), place="again") == loaded


def test_every_keyword_is_one_field_and_keeps_its_default():
    found = [one.word for one in words.settings()]
    assert len(found) == len(set(found))
    made = words.of(
        "m", "some/Data Set.jsonl", {one.word: one.default for one in words.settings() if one.word != "name"}
    )
    assert made == config.parse({"base_model": {"source": "m"}, "dataset": {"source": "some/Data Set.jsonl"}}, place="")
    assert made.name == "data-set"


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("epoch", "did you mean `epochs`"),
        ("revision", "`base_model_revision` or `dataset_revision`"),
        ("budget", "is called `race_budget`"),
        ("xyzzy", "settings: "),
    ],
)
def test_an_unknown_keyword_names_the_nearest(word, sentence):
    with pytest.raises(InputError, match=sentence):
        words.of("m", "d", {word: 1})


def test_folders_and_addresses_do_not_change_a_run(file):
    plain = config.load(str(file)).digested()
    assert config.load(str(file), ["runs_dir=elsewhere", "tracking.uri=http://h:1"]).digested() == plain
    assert config.load(str(file), ["recipes.trainers=[trl]", "tracking.uri=null"]).digested() == plain
    assert config.load(str(file), ["seed=1"]).digested() != plain


def test_how_a_run_came_about_does_not_change_it(file):
    plain = config.load(str(file)).digested()
    told = [f"dataset.registered={'a' * 64}", "dataset.allowed_folders=[/data]"]
    assert config.load(str(file), told).digested() == plain
    assert config.load(str(file), ["promotion.approval=required"]).digested() != plain


def test_the_tracking_address_is_mlflows_own_variable_and_its_password_stays_inside(file, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:hunter22@host:5000")
    loaded = config.load(str(file))
    assert loaded.tracking.uri == "http://ann:hunter22@host:5000"
    assert "hunter22" not in loaded.model_dump_json() + repr(loaded) + str(loaded.model_dump())
    assert "ann:***@host" in loaded.model_dump_json()
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert config.load(str(file)).tracking.uri == "sqlite:///mlflow.db"
    with pytest.raises(InputError) as caught:
        config.load(str(file), ["tracking.uri=http://ann:hunter22@host:5000"])
    assert "hunter22" not in str(caught.value)
    kept = config.load(str(file), ["tracking.uri=http://ann:${SECRET}@host:5000"])
    assert "${SECRET}" in kept.model_dump_json()


def test_a_path_with_yamls_characters_is_one_path(file):
    """What `prefect.yaml` makes of an event's path."""
    path = "/data/ev: il # [1].jsonl"
    assert config.load(str(file), [f"dataset.source={json.dumps(path)}"]).dataset.source == path


def test_what_retention_does_better_is_no_choice_any_more(file):
    with pytest.raises(InputError, match="`prefer_retention` is gone: `retention` keeps more"):
        config.load(str(file), ["selection.prefer_retention=true"])
    earlier = config.load(str(file), ["selection.prefer_retention=false"])
    assert earlier.digested() == config.load(str(file)).digested()


def test_as_many_epochs_as_wanted_need_rows_to_look_at(file):
    assert config.load(str(file), ["training.epochs=auto"]).training.epochs == "auto"
    assert config.load(str(file), ["training.epochs=3"]).training.epochs == 3.0
    for without in ("training.validation=0", "training.patience=null"):
        with pytest.raises(InputError, match="needs `validation`"):
            config.load(str(file), ["training.epochs=auto", without])
    with pytest.raises(InputError):
        config.load(str(file), ["training.epochs=0"])


def test_examples_in_the_prompt_are_a_number_or_auto_and_what_follows_is_no_constraint(file):
    assert [config.load(str(file), [f"evaluation.few_shot={k}"]).evaluation.few_shot for k in (0, 64, "auto")] == [
        0,
        64,
        "auto",
    ]
    for wrong in (65, -1, "many"):
        with pytest.raises(InputError, match=r"`evaluation.few_shot`: input should be 'auto', or "):
            config.load(str(file), [f"evaluation.few_shot={wrong}"])
    stops = config.load(str(file), ["selection.when_hopeless=stop"])
    assert stops.constraints == config.load(str(file)).constraints
    assert stops.digested() != config.load(str(file)).digested()


def test_a_quantised_base_reaches_selection_and_training(file):
    loaded = config.load(str(file), ["base_model.quantize=nf4"])
    assert loaded.constraints.quantized_base == "nf4"
    assert Run(loaded, None, {}, "key", None).training["quantize"] == "nf4"
    with pytest.raises(InputError, match=r"`base_model.quantize`: .*'nf4' or 'int8'.*got 'fp4'"):
        config.load(str(file), ["base_model.quantize=fp4"])
    assert config.load(str(file), ["evaluation.quantized=[Q4_0, nf4]"]).evaluation.quantized == ("q4_0", "nf4")
    with pytest.raises(InputError, match=r"`evaluation.quantized.0`: .*'q4_1' or 'q4_0', got 'q3'"):
        config.load(str(file), ["evaluation.quantized=[q3]"])
    for name in ("Q4_K_M", "iq4_xs", "q6_k", "IQ2_XXS"):
        with pytest.raises(InputError, match=r"`evaluation.quantized.0`: only llama.cpp makes K-quants"):
            config.load(str(file), [f"evaluation.quantized=[{name}]"])


def test_a_flow_whose_stages_are_all_finished_imports_no_torch(tiny_model_folder, tmp_path):
    """It would cost seconds of every start; stages import what they need when they run."""
    from lora_select import models

    models.resolve(str(tiny_model_folder), cache=tmp_path)
    code = (
        f"import sys, pathlib, flows.finetune; from lora_select import models; "
        "from lora_select.training.machine import detect_machine; detect_machine(); "
        f"models.resolve({str(tiny_model_folder)!r}, cache=pathlib.Path({str(tmp_path)!r})); "
        "print([name for name in ('torch', 'transformers', 'peft') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")
