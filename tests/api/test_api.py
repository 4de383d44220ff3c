"""The Python API on a tiny model: what a notebook would call, on each kind of model and dataset."""

import json
from pathlib import Path

import pytest
from recipe_samples import chats, write_jsonl

import lora_select as ls
from lora_select import api, models, records
from lora_select.audit.books import grounds
from lora_select.cli.main import main
from lora_select.records import Decision

QUICK = {"microbatches": 4, "sketch_size": 16, "base_loss_rows": 4, "max_length": 512, "batch_size": 8}
ROWS = chats(40)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("api")
    write_jsonl(folder / "rows.jsonl", ROWS)
    return folder


@pytest.fixture(scope="module")
def settings(place):
    return QUICK | {"runs_dir": str(place / "runs")}


@pytest.fixture(scope="module")
def choice(tiny_model_folder, place, settings):
    return ls.recommend(str(tiny_model_folder), place / "rows.jsonl", **settings)


@pytest.fixture
def base(tiny_model_folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_model_folder)


def test_a_choice_says_what_to_train_in_three_sentences_first(choice):
    assert (choice.variant, choice.targets, choice.r) == ("lora", "all-linear", 16)
    first, why, unshown, empty, *rest = str(choice).splitlines()
    assert first.startswith("LoRA on all linear layers, r 16, alpha ")
    assert float(first.rpartition(" ")[2].rstrip(".")) == pytest.approx(choice.learning_rate, rel=0.05)
    assert why == "The measurements do not separate the variants, so this is the default."
    assert unshown.startswith("This learning rate was never shown on a model of ")  # the tiny one
    assert not empty
    assert first.partition(",")[0] not in "\n".join(rest)
    assert choice.decision == records.read(Decision, choice.folder / "decision.json")


def test_frames_and_pages_hold_every_candidate_and_every_layer(choice, tiny_model_folder, place, settings):
    frame = choice.to_frame()
    assert len(frame) == len(choice.decision.candidates)
    assert frame.candidate[0] == choice.decision.choice_key
    assert frame.chosen.sum() == 1
    assert choice._repr_html_().count("<tr>") == len(frame) + 1
    spectra = ls.analyze(str(tiny_model_folder), place / "rows.jsonl", **settings)
    layers = spectra.to_frame()
    assert len(layers) == 14
    assert set(layers.signal_energy) == {layer.signal_energy for layer in spectra.spectra.layers}
    assert spectra._repr_html_().count("<tr>") == 15
    assert "14 layers over 4 microbatches" in repr(spectra)


def test_the_adapter_is_peft_s_own_and_starts_at_the_base_s_function(choice, base, tiny_model_folder):
    import peft
    import torch

    config = choice.peft_config()
    assert isinstance(config, peft.LoraConfig)
    assert (config.r, config.lora_alpha, set(config.target_modules)) == (
        choice.r,
        choice.spec.lora_alpha,
        set(choice.spec.target_modules),
    )
    ids = torch.arange(4, 20)[None]
    before = base(input_ids=ids).logits
    state = torch.get_rng_state()
    model = choice.apply(base)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(model(input_ids=ids).logits, before)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == choice.spec.num_parameters
    own = choice.apply()
    dtype = "bfloat16" if choice.plan.precision == "bf16" else "float32"  # the plan's: machines differ
    assert own.dtype == getattr(torch, dtype)
    given = choice.apply(models.load_model(str(tiny_model_folder), dtype=dtype))
    assert all(torch.equal(a, b) for a, b in zip(own.state_dict().values(), given.state_dict().values(), strict=True))


def test_an_initialisation_that_peft_lacks_is_applied_from_the_measurement(tiny_model_folder, place, settings, base):
    import torch

    eva = ls.recommend(str(tiny_model_folder), place / "rows.jsonl", variant="eva", **settings)
    model = eva.apply(base)
    layer = model.base_model.model.model.layers[0].mlp.up_proj
    a = layer.lora_A["default"].weight.detach()
    assert torch.allclose(a @ a.T / (a @ a.T)[0, 0], torch.eye(len(a)), atol=1e-3)
    assert not layer.lora_B["default"].weight.any()


@pytest.mark.slow
def test_a_folder_that_engines_would_read_differently_is_told_before_it_is_trained(
    tiny_model_folder, place, settings, choice
):
    def told(**more):
        made = ls.recommend(str(tiny_model_folder), place / "rows.jsonl", **settings, **more)
        return [note for note in made.notes((), place) if "the trained folder" in note]

    assert not [note for note in choice.notes((), place) if "the trained folder" in note]
    (rslora,) = told(variant="rslora")
    assert "SGLang, llama.cpp, Ollama" in rslora


def test_training_arguments_are_keywords_of_transformers(choice, tmp_path):
    from transformers import TrainingArguments

    made = TrainingArguments(**choice.training_arguments() | {"output_dir": str(tmp_path)})
    assert made.learning_rate == choice.learning_rate
    assert made.per_device_train_batch_size * made.gradient_accumulation_steps == QUICK["batch_size"]
    assert made.seed == choice.plan.seed


def test_files_for_trainers_explain_and_replay(choice, tmp_path, capsys):
    written = choice.write(tmp_path / "out", trainers=["trl", "axolotl"])
    assert [one.tool for one in written] == ["trl", "axolotl"]
    assert (tmp_path / "out" / "trl" / "train.py").is_file()
    assert main(["replay", str(tmp_path / "out")]) == 0
    assert main(["explain", str(tmp_path / "out")]) == 0
    assert choice.decision.choice_key in capsys.readouterr().out
    with pytest.raises(ls.InputError, match="`recipes.trainers` 'trll' is no trainer"):
        choice.write(tmp_path / "out", trainers=["trll"])


@pytest.mark.slow
def test_reference_text_that_training_replays_is_planned_and_written_for_another_trainer(
    tiny_model_folder, place, settings, choice, tmp_path
):
    made = ls.recommend(str(tiny_model_folder), place / "rows.jsonl", **settings, replay=0.2)
    trained = choice.plan.total_steps * QUICK["batch_size"]
    assert made.plan.replay.rows_of == {"prose": made.plan.replay.rows}
    assert made.plan.total_steps * QUICK["batch_size"] > trained
    counts = []
    for one, folder in ((choice, tmp_path / "without"), (made, tmp_path / "with")):
        one.write(folder, trainers=["trl"])
        counts.append(len((folder / "trl" / "train.jsonl").read_text().splitlines()))
    assert counts[1] - counts[0] == made.plan.replay.rows > 0
    assert not [note for note in made.notes((), place) if "other tokens" in note]


def test_a_loaded_model_and_a_datasets_dataset(base, choice, settings):
    import datasets

    plain = [{"prompt": f"say {n}", "completion": f"{n}! " * 4} for n in range(40)]
    from_rows = ls.recommend(base, plain, **settings)
    from_hub = ls.recommend(base, datasets.Dataset.from_list(plain), **settings)
    assert from_hub.decision.choice == from_rows.decision.choice
    assert from_hub.run.base.digest == choice.run.base.digest


def test_rows_in_memory_are_those_of_the_file(tiny_model_folder, place, settings, choice):
    made = ls.recommend(str(tiny_model_folder), iter(ROWS), **settings, name="rows")
    assert made.run.config.dataset.source != choice.run.config.dataset.source
    assert (
        made.recommended.chosen.measured.dataset.record.digest
        == choice.recommended.chosen.measured.dataset.record.digest
    )


def test_the_command_takes_up_what_the_api_measured_and_decides_the_same(
    choice, tiny_model_folder, place, settings, capsys
):
    words = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    code = main(["recommend", str(tiny_model_folder), str(place / "rows.jsonl"), *words, "--out", str(place / "out")])
    said = capsys.readouterr()
    assert code == 0, said.err
    assert said.out.count("(reused)") == 6
    assert (place / "out" / "decision.json").read_bytes() == (choice.folder / "decision.json").read_bytes()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"epoch": 2}, "`epoch` is no setting; did you mean `epochs`"),
        ({"budget": 3}, "`budget` is called `race_budget`"),
        ({"variant": "lorra"}, "did you mean lora"),
        ({"epochs": -1}, "`training.epochs`"),
        ({"trainers": ["axolotl"], "variant": "vera"}, "`recipes.trainers` axolotl: Axolotl has no vera"),
        ({"overrides": ["training.epoch=1"]}, "did you mean `epochs`"),
        (
            {"overrides": ["recipes.trainers=[axolotl]"], "variant": "vera"},
            "`recipes.trainers` axolotl: Axolotl has no vera",
        ),
        ({"tracking_uri": "file:mlruns"}, "no longer supports"),
    ],
)
def test_bad_settings_are_the_command_s_sentences(tiny_model_folder, place, settings, changes, words):
    with pytest.raises(ls.InputError, match=words):
        ls.recommend(str(tiny_model_folder), place / "rows.jsonl", **settings | changes)


def test_rows_in_memory_lie_below_the_runs_and_a_tracked_run_of_them_has_a_name(tiny_model_folder, tmp_path):
    told = (str(tiny_model_folder), ROWS, None)
    made = api._config(*told, {"tracking_uri": None}, [f"runs_dir={tmp_path}"])
    assert Path(made.dataset.source).is_relative_to(tmp_path)
    with pytest.raises(ls.InputError, match="rows in memory have no name"):
        api._config(*told, {"runs_dir": str(tmp_path / "none")}, [])
    assert not (tmp_path / "none").exists()
    assert api._config(*told, {"runs_dir": str(tmp_path), "name": "chats"}, []).name == "chats"


def test_curvature_is_measured_wherever_it_is_asked_for(choice, tiny_model_folder, place, settings):
    assert not (choice.folder / "costs.json").exists()
    again = ls.recommend(str(tiny_model_folder), place / "rows.jsonl", curvature=True, **settings)
    assert again.folder == choice.folder
    assert json.loads((choice.folder / "costs.json").read_text())["curvature"]["value"] > 0
    assert "costs" in grounds.digests(choice.folder)


def test_a_dataset_of_no_known_format_names_its_columns(tiny_model_folder, settings):
    with pytest.raises(ls.InputError, match="colour"):
        ls.recommend(str(tiny_model_folder), [{"colour": "red", "size": 3}] * 10, **settings)


def test_nothing_is_printed_unless_it_is_wanted(tiny_model_folder, place, settings, capsys):
    ls.analyze(str(tiny_model_folder), place / "rows.jsonl", **settings)
    assert capsys.readouterr().out == ""
    ls.analyze(str(tiny_model_folder), place / "rows.jsonl", progress=True, **settings)
    assert capsys.readouterr().out.count("(reused)") == 4


def test_loading_what_is_no_run_names_those_that_are_near(choice, place):
    with pytest.raises(ls.InputError, match=choice.folder.name):
        ls.load(place / "runs" / "nowhere")
    run = ls.load(choice.folder)
    assert run.replay() == []
    assert run.decision == choice.decision
    assert "Nothing was trained yet" in repr(run)
    with pytest.raises(ls.InputError, match="did not get that far"):
        run.evaluation  # noqa: B018


def test_missing_extras_are_one_sentence(choice, monkeypatch, tiny_model_folder, place, settings):
    import importlib.util

    real = importlib.util.find_spec
    gone = {"pandas", "deepspeed", "mlflow"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name in gone else real(name, *more))
    with pytest.raises(ls.InputError, match=r"needs pandas: pip install 'lora-select\[data\]'"):
        choice.to_frame()
    with pytest.raises(ls.InputError, match=r"`finetune` needs deepspeed: pip install 'lora-select\[train\]'"):
        ls.finetune(str(tiny_model_folder), place / "rows.jsonl", **settings)
    with pytest.raises(
        ls.InputError, match=r"needs mlflow: pip install 'lora-select\[track\]', or set `tracking.uri=null`"
    ):
        ls.recommend(str(tiny_model_folder), place / "rows.jsonl", tracking_uri="sqlite:///x.db", **settings)


def test_the_catalogue_is_offered_and_table_counts_it():
    from lora_select.variants import VARIANTS

    assert ls.variants.VARIANTS is VARIANTS
    found = ls.variants.table(serve="vllm", r=8)
    assert [row["variant"] for row in found] == [variant.name for variant in VARIANTS]
    by_name = {row["variant"]: row for row in found}
    assert by_name["lora"]["refused"] == ""
    assert by_name["lora"]["parameters"] == 2 * 8 * 4096
    assert "vLLM" in by_name["dora"]["refused"]
    assert json.dumps(found)
