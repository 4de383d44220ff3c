"""`lora-select recommend` on a tiny model: what it prints and writes, what it takes up again, and what it refuses when."""

import json

import pytest
from recipe_samples import chats, write_jsonl

from lora_select import records
from lora_select.cli.main import main
from lora_select.records import Decision, Race, TrainingPlan

QUICK = ("--microbatches", "4", "--sketch-size", "8", "--batch-size", "8", "--max-length", "512")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_jsonl(tmp_path_factory.mktemp("data") / "rows.jsonl", chats(40))


@pytest.fixture(scope="module")
def answer(tiny_model_folder, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "answer"
    assert recommend(tiny_model_folder, data, out, "--trainers", "trl", "axolotl") == 0
    return out


def recommend(model, data, out, *more):
    """In runs of their own beside `out`, so that tests share what is measured for one `out` and nothing else."""
    runs = ("--runs-dir", str(out.parent / "runs"))
    return main(["recommend", str(model), str(data), "--out", str(out), *runs, *QUICK, *more])


def measured(out):
    return {
        path: path.stat().st_mtime_ns for path in (out.parent / "runs" / "stages" / "analyze").glob("*/record.json")
    }


def test_the_folder_explains_and_replays_as_a_run_does(answer, capsys):
    assert main(["replay", str(answer)]) == 0
    assert main(["explain", str(answer)]) == 0
    assert "lora-all-linear-r16" in capsys.readouterr().out
    decision = records.read(Decision, answer / "decision.json")
    plan = records.read(TrainingPlan, answer / "plan.json")
    assert plan.learning_rate == decision.choice.learning_rate
    assert plan.num_processes == 1
    assert plan.micro_batch_size * plan.gradient_accumulation_steps == 8
    assert (answer / "trl" / "train.py").is_file()
    assert (answer / "axolotl" / "train.yaml").is_file()


@pytest.mark.slow
def test_asking_again_takes_the_measurements_up_and_another_constraint_changes_the_answer(
    tiny_model_folder, data, answer, capsys
):
    before = measured(answer)
    code = recommend(tiny_model_folder, data, answer, "--r", "8", "--trainers", "ms-swift")
    printed = capsys.readouterr()
    assert code == 0, printed.err
    assert printed.out.count("(reused)") == len(("rows", "gate", "profile", "spectra"))
    assert measured(answer) == before
    assert records.read(Decision, answer / "decision.json").choice.r == 8
    assert "lora_rank: 8" in (answer / "ms-swift" / "train.yaml").read_text()
    assert recommend(tiny_model_folder, data, answer, "--variant", "dora", "--trainers", "ms-swift") == 0
    assert len(measured(answer)) == len(before) + 1  # a named variant reads more of the pass
    assert records.read(Decision, answer / "decision.json").choice.variant == "dora"
    assert "peft_use_dora" not in (answer / "ms-swift" / "train.yaml").read_text()
    assert "use_dora: true" in (answer / "ms-swift" / "train.yaml").read_text()
    assert "swift" in printed.out
    assert "min (" in printed.out
    assert main(["replay", str(answer)]) == 0


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--variant", "milora"], "milora takes its start B0 A0 off the base weights"),
        (["--variant", "vera", "--trainers", "axolotl"], "`recipes.trainers` axolotl: Axolotl has no vera"),
        (["--variant", "lorra"], "did you mean lora"),
        (["--memory", "24"], "with a unit"),
        (["--device", "cuda"], "name its memory"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_measured(
    tiny_model_folder, data, tmp_path, capsys, more, sentence
):
    assert recommend(tiny_model_folder, data, tmp_path / "out", *more) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert not list((tmp_path / "runs").glob("stages/*"))


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--memory", "300MiB"], "GiB a rank at ZeRO-0, 0.3 are there"),
        (["--max-length", "100", "--trainers", "llamafactory"], "use `dataset.max_length`"),
    ],
)
def test_what_the_rows_or_the_memory_rule_out_is_refused_before_the_spectral_pass(
    tiny_model_folder, data, tmp_path, capsys, more, sentence
):
    assert recommend(tiny_model_folder, data, tmp_path / "out", *more) == 2
    assert sentence in capsys.readouterr().err
    assert list((tmp_path / "runs").glob("*/profile.json"))
    assert not measured(tmp_path / "out")


def test_memory_of_a_gpu_elsewhere_limits_the_plan_and_its_time_is_called_computed(
    tiny_model_folder, data, answer, tmp_path, capsys
):
    before = measured(answer)
    assert recommend(tiny_model_folder, data, answer, "--device", "cuda", "--memory", "24GiB", "--quantize", "nf4") == 0
    printed = capsys.readouterr().out
    assert measured(answer) == before
    assert "of an earlier call and may follow another decision" in printed
    assert "computed from sizes alone, not measured" in printed
    assert "one GPU" in printed
    plan = records.read(TrainingPlan, answer / "plan.json")
    assert (plan.device, plan.precision) == ("cuda", "bf16")
    assert plan.memory_gib.expected < 24
    values = json.loads((answer / "peft" / "training.json").read_text())
    assert values["quantized_base"] == "nf4"


@pytest.mark.parametrize(
    ("old", "new"),
    [("--base", "--quantize"), ("--batch", "--batch-size"), ("--budget", "--race-budget"), ("--emit", "--trainers")],
)
def test_an_old_spelling_is_refused_with_the_new_one(old, new, capsys):
    assert main(["recommend", "model", "rows.jsonl", old, "8"]) == 2
    assert f"{old} is called {new}" in capsys.readouterr().err


def test_json_is_one_value_on_the_output(tiny_model_folder, data, answer, capsys):
    assert recommend(tiny_model_folder, data, answer, "--trainers", "trl", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["decision"] == json.loads((answer / "decision.json").read_text())
    assert [one["trainer"] for one in found["written"]] == ["trl"]
    assert main(["explain", str(answer), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["decision"] == found["decision"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["model"], "name a model and data"),
        (["model", "rows.jsonl", "more"], "left over: more"),
        (["model", "rows.jsonl", "out=there"], "an option is --out there"),
        ([], "name a model and data"),
        (["nowhere.yaml"], "nowhere.yaml does not exist"),
        (["model", "--data", "a.jsonl", "b"], "left over: b"),
        (["model", "rows.jsonl", "--epoch", "2"], "did you mean --epochs"),
        (["model", "--epochs", "nan,", "rows.jsonl"], "`training.epochs`"),
        (["model", "rows.jsonl", "--seed", "0", "training.epoch=2"], "did you mean `epochs`"),
    ],
)
def test_words_that_mean_nothing_are_refused(words, said, capsys):
    assert main(["recommend", *words]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_a_budget_buys_a_race_that_decides_and_is_kept(tiny_model_folder, tmp_path, capsys):
    many = write_jsonl(tmp_path / "rows.jsonl", chats(60))
    out = tmp_path / "out"
    assert recommend(tiny_model_folder, many, out, "--race-budget", "300%", "--r", "4", "--variant", "lora") == 0
    race = records.read(Race, out / "race.json")
    assert race.cost <= 3
    decision = records.read(Decision, out / "decision.json")
    assert decision.race_digest == records.digest(race)
    assert any(f"ran {len(race.probes)} trials" in reason for reason in decision.reasons)
    assert main(["replay", str(out)]) == 0
    seconds = [probe.seconds for probe in race.probes]
    assert (
        recommend(
            tiny_model_folder, many, out, "--race-budget", "300%", "--r", "4", "--variant", "lora", "--trainers", "trl"
        )
        == 0
    )
    assert [probe.seconds for probe in records.read(Race, out / "race.json").probes] == seconds
