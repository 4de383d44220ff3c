"""The whole line on a tiny model, as a person runs it: own processes, real Prefect, real MLflow, real ranks."""

import contextlib
import http.server
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import tiny_run
from tiny_run import ROOT

import lora_select as ls
from flows.arguments import run_from_command_line
from flows.finetune import finetune
from lora_select.cli.main import main

FLOW = type(finetune)
pytestmark = pytest.mark.timeout(
    900
)  # seven processes import torch one after another, on a busy machine half a minute each


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_model_folder):
    """A folder with a config, a dataset, and an environment whose stores are below it."""
    folder = tmp_path_factory.mktemp("flow")
    tiny_run.written(folder, tiny_model_folder)
    return folder, tiny_run.environment(folder)


def run(place, *overrides, code=0):
    folder, environment = place
    done = subprocess.run(
        tiny_run.command(folder, *overrides),
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def here(place, *words):
    """A command of the library in this process, without Prefect: its exit code and what it printed."""
    folder, environment = place
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        patch.setenv("LORA_SELECT_CACHE", environment["LORA_SELECT_CACHE"])
        code = main([words[0], str(folder / "tiny.yaml"), *words[1:]])
    return code, out.getvalue()


@pytest.fixture(scope="module")
def recommended(place):
    """What `lora-select recommend` decides, before any flow has run."""
    assert here(place, "recommend", "--out", str(place[0] / "out"), "--trainers", "trl")[0] == 0
    return (place[0] / "out" / "decision.json").read_bytes()


@pytest.fixture(scope="module")
def first(place, recommended):
    return run(place)


def latest(place) -> Path:
    return place[0] / "runs" / "latest"


def record(place, name):
    return json.loads((latest(place) / f"{name}.json").read_text())


NAMES = (
    "dataset",
    "gate",
    "profile",
    "spectra",
    "decision",
    "plan",
    "adapter",
    "proof",
    "evaluation",
    "promotion",
    "evidence",
    "report",
)


def test_bad_input_is_code_2_of_the_process(place):
    said = run(place, "training.epoch=1", "dataset.max_len=9", code=2)
    assert "did you mean `epochs`" in said
    assert "did you mean `max_length`" in said
    assert "Traceback" not in said


def test_a_temporary_server_that_does_not_answer_in_time_is_one_sentence(place):
    folder, environment = place
    said = run((folder, environment | {"PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "1"}), code=1)
    assert said.count("error: Prefect's temporary server did not answer") == 1
    assert "Traceback" not in said


def test_every_stage_leaves_its_record(place, first):
    assert all((latest(place) / f"{name}.json").is_file() for name in NAMES)
    assert record(place, "proof")["passed"]
    loss = record(place, "evaluation")["metrics"]["loss"]
    assert loss["difference"] < 0
    assert loss["interval"][1] < 0
    assert record(place, "promotion")["alias"] == "champion"
    page = (latest(place) / "report.html").read_text()
    assert "lowers held-out loss" in page
    assert "<b>" not in page.split("</style>")[1].split("What it says")[1].split("The choice")[0]
    assert "held-out loss:" in first
    assert "Traceback" not in first


def test_where_no_training_learnt_so_little_by_then_no_forecast_is_said(place, first):
    from lora_select.selection.calibration import shipped
    from lora_select.selection.prediction import forecast

    lines = (latest(place) / "adapter").resolve().parent.joinpath("metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    told = forecast(record(place, "profile")["base_loss"], losses, record(place, "plan")["total_steps"], shipped())
    assert told is None  # test_forecast.py has one that is given
    assert record(place, "adapter")["forecast"] is None
    assert "the held-out loss is on its way from" not in first


def test_the_flow_goes_on_where_recommend_ended_with_the_same_decision(place, recommended, first):
    assert (latest(place) / "decision.json").read_bytes() == recommended
    assert first.count("(reused)") == len(("dataset", "gate", "profile", "spectra", "decision"))
    runs = [
        path for path in (place[0] / "runs").iterdir() if (path / "decision.json").is_file() and not path.is_symlink()
    ]
    assert len(runs) == 1


def test_mlflow_shows_all_of_it(place, first):
    from lora_select.tracking.store import prepare

    store = prepare(f"sqlite:///{place[0]}/mlflow.db")
    notes = json.loads((latest(place) / "tracking.json").read_text())
    parent = store.client.get_run(notes["parent_run_id"])
    assert parent.info.status == "FINISHED"
    choice = record(place, "decision")["choice"]
    assert parent.info.run_name == f"tiny · LoRA r {choice['r']} · champion"
    assert parent.data.params["variant"] == "lora"
    evaluated = record(place, "evaluation")["metrics"]["loss"]
    assert parent.data.metrics["eval/loss/adapted"] == evaluated["adapted"]
    steps = store.client.get_metric_history(notes["parent_run_id"], "train/loss")
    assert [point.step for point in steps] == list(range(1, record(place, "plan")["total_steps"] + 1))
    children = store.client.search_runs(
        [store.experiment_id], f"tags.`mlflow.parentRunId` = '{notes['parent_run_id']}'"
    )
    stages = {child.data.tags["lora.stage"] for child in children}
    assert stages >= {"adapter", "evaluation"}  # `recommend`, which is not tracked, had measured what comes before
    assert str(store.client.get_model_version_by_alias("tiny", "champion").version) == "1"


@pytest.mark.slow
def test_unchanged_second_run_reuses_every_stage(place, first):
    stamps = {path: path.stat().st_mtime_ns for path in (place[0] / "runs" / "stages").glob("*/*/record.json")}
    second = run(place)
    assert second.count("(reused)") == len(NAMES)
    assert stamps == {path: path.stat().st_mtime_ns for path in (place[0] / "runs" / "stages").glob("*/*/record.json")}


def test_the_line_without_prefect_takes_all_of_it_up(place, first):
    code, said = here(place, "finetune")
    assert code == 0
    assert said.count("(reused)") == len(NAMES)
    done = ls.load(latest(place))
    assert done.replay() == []
    assert done.evaluation.metrics["loss"].difference < 0
    assert done.promotion is not None
    assert done.promotion.alias == "champion"
    assert done.report.is_file()
    assert (done.adapter_folder / "adapter_config.json").is_file()
    assert "champion of tiny" in repr(done)
    assert done._repr_html_().count("<tr>") == len(done.evaluation.metrics) + 2


def test_plain_peft_loads_the_adapter(place, first, tiny_model_folder):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_model_folder), latest(place) / "adapter"
    )
    assert any(p.abs().sum() > 0 for n, p in model.named_parameters() if "lora_B" in n)


@pytest.mark.slow
def test_dry_run_stops_after_the_plan(place, first):
    said = run(place, "--dry-run", "training.epochs=1")
    assert said.count("(reused)") == len(("dataset", "gate", "profile", "spectra"))  # the decision knows the steps
    assert "dry run: nothing was trained" in said
    assert "GiB a rank" in said
    assert len(list((place[0] / "runs" / "stages" / "train").glob("*/record.json"))) == 1


def refused(place, monkeypatch, capsys, *overrides, **environment):
    """What the command says on stderr in this process, with exit code 2: it ends before Prefect starts anything."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", tiny_run.command(place[0], *overrides)[2:])
    for name, value in (place[1] | environment).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(FLOW, "__call__", lambda *a, **k: pytest.fail("the flow was started"))
    assert run_from_command_line(finetune, "", may_dry_run=True) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("selection.variant=mica --base_model.quantize=nf4", "measured: mica does not train on a nf4 base"),
        ("dataset.source=none.jsonl", "none.jsonl does not exist"),
        ("dataset.eval_source=none.jsonl", "none.jsonl does not exist"),
        ("training.epoch=1", "did you mean `epochs`"),
        ("tracking.uri=file:mlruns", "no longer supports"),
        ("tracking.uri=http://127.0.0.1:9", "MLflow does not answer at http://127.0.0.1:9"),
    ],
)
def test_bad_input_is_one_sentence_and_code_2_before_anything_starts(place, monkeypatch, capsys, override, words):
    assert words in refused(place, monkeypatch, capsys, *override.split())


def test_an_unreachable_prefect_is_one_sentence(place, monkeypatch, capsys):
    said = refused(place, monkeypatch, capsys, PREFECT_API_URL="http://127.0.0.1:9/api")
    assert "the Prefect server at http://127.0.0.1:9/api" in said
    assert "does not answer" in said


def test_a_dead_server_of_the_profile_an_address_without_api_and_a_home_that_takes_nothing(
    place, monkeypatch, capsys, tmp_path
):
    """As Prefect itself reads its settings; a home below a file can be written by nobody, root included."""
    profile = '[profiles.local]\nPREFECT_API_URL = "http://127.0.0.1:9/api"\n'
    (tmp_path / "profiles.toml").write_text(f'active = "local"\n{profile}')
    assert "does not answer" in refused(place, monkeypatch, capsys, PREFECT_HOME=str(tmp_path))
    (tmp_path / "file").touch()
    said = refused(place, monkeypatch, capsys, PREFECT_HOME=str(tmp_path / "file" / "home"))
    assert "cannot be written (Not a directory); set PREFECT_HOME" in said
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        said = refused(place, monkeypatch, capsys, PREFECT_API_URL=f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
    assert "its address ends in /api" in said


@pytest.mark.slow
def test_kill_9_in_mid_training_then_the_same_command(place, first):
    """SIGKILL of the flow leaves no process; the same command resumes, and the records are those of a run in peace."""
    folder, environment = place
    changes = ("training.epochs=60", "training.checkpoint_every=5")
    victim = subprocess.Popen(tiny_run.command(folder, *changes), cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    known = {path.parent for path in (folder / "runs" / "stages" / "train").glob("*/record.json")}

    def folder_in_training():
        found = [p for p in (folder / "runs" / "stages" / "train").glob("*/metrics.jsonl") if p.parent not in known]
        return found[0].parent if found and found[0].read_text().count("\n") > 12 else None

    deadline = time.monotonic() + 200
    while not (training := folder_in_training()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    below = psutil.Process(victim.pid).children(recursive=True)
    os.kill(victim.pid, signal.SIGKILL)
    victim.wait(30)
    trainers = [p for p in below if p.is_running() and "lora_select.training" in " ".join(_cmdline(p))]
    _, alive = psutil.wait_procs(trainers, timeout=40)
    assert not alive
    assert not (training / "result.json").exists()

    said = run(place, *changes)
    assert "resumed from step" in said
    adapter = json.loads((training / "record.json").read_text())
    assert adapter["resumed_from"][0] > 0
    steps = [json.loads(line)["step"] for line in (training / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, adapter["steps"] + 1))
    from lora_select.tracking.store import prepare

    store = prepare(f"sqlite:///{folder}/mlflow.db")
    parent = json.loads((latest(place) / "tracking.json").read_text())["parent_run_id"]
    points = store.client.get_metric_history(parent, "train/loss")
    assert [point.step for point in points] == steps


def _cmdline(process):
    try:
        return process.cmdline()
    except psutil.Error:
        return []
