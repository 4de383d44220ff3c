"""The server in a process of its own, asked by the SDK's client."""

import asyncio
import json
import os
import shutil
import sys
import time

import pytest

from lora_select.agents.jobs import FOLDER, Jobs
from lora_select.agents.roots import inside, source
from lora_select.agents.server import _job_tools
from lora_select.cli import options
from lora_select.cli.main import _parser
from lora_select.data.gate import text
from lora_select.data.gate.check import check_data
from lora_select.errors import InputError

TOOLS = {"recommend", "retain", "job", "cancel", "explain", "compare", "variants", "check_data"}


def ask(root, *calls):
    """Tools and the answers to calls `(tool, arguments)`; an argument that is a function is handed the answers so far."""
    from mcp import Client, StdioServerParameters

    async def run():
        told = ["-m", "lora_select.cli.main", "mcp", "--root", str(root)]
        command = StdioServerParameters(command=sys.executable, args=told, cwd=str(root), env=dict(os.environ))
        answers = []
        async with Client(command, read_timeout_seconds=120) as client:
            tools = (await client.list_tools()).tools
            for tool, arguments in calls:
                told = {key: value(answers) if callable(value) else value for key, value in arguments.items()}
                answers.append(await client.call_tool(tool, told))
        return tools, answers

    return asyncio.run(run())


def test_the_tools_are_typed_and_a_job_is_polled_and_cancelled(tiny_model_folder, tmp_path):
    shutil.copytree(tiny_model_folder, tmp_path / "model")
    (tmp_path / "rows.jsonl").write_text("\n".join(f'{{"text": "row {n} of some"}}' for n in range(40)))
    tools, answers = ask(
        tmp_path,
        ("recommend", {"model": "model", "data": "rows.jsonl", "serve": "vllm", "trainers": ["trl"], "race_budget": 3}),
        ("job", {"job": lambda so_far: so_far[0].structured_content["job"]}),
        ("cancel", {"job": lambda so_far: so_far[0].structured_content["job"]}),
        ("recommend", {"model": "model", "data": "/etc/passwd"}),
        ("explain", {"run": "../elsewhere"}),
        ("explain", {"run": "nothing-here"}),
        ("job", {"job": "none"}),
        ("variants", {"model": "model", "serve": "vllm", "r": 8}),
        ("recommend", {"model": "model", "data": "rows.jsonl", "serve": "vlm"}),
        ("check_data", {"data": "rows.jsonl"}),
    )
    by_name = {tool.name: tool for tool in tools}
    assert set(by_name) == TOOLS
    assert set(by_name["recommend"].input_schema["required"]) == {"model", "data"}
    started, looked, cancelled, outside, above, missing, unknown, variants, misspelt, checked = answers
    assert started.structured_content["state"] == "running"
    assert "--serve=vllm" in started.structured_content["command"]
    assert looked.structured_content["state"] == "running"
    assert looked.structured_content["seconds"] >= started.structured_content["seconds"]
    assert cancelled.structured_content["state"] == "cancelled"
    for refused in (outside, above):
        assert refused.is_error
        assert "outside of what this server may read and write" in refused.content[0].text
    assert missing.is_error
    assert "holds no decision.json" in missing.content[0].text
    assert unknown.is_error
    lines = {line["name"]: line for line in variants.structured_content["result"]}
    assert not lines["lora"]["refused"]
    assert any("vLLM" in sentence for sentence in lines["dora"]["refused"])
    assert misspelt.is_error
    assert checked.structured_content["text"] == text.full(check_data(str(tmp_path / "rows.jsonl")))


def finished(jobs: Jobs, name: str):
    for _ in range(600):
        if (state := jobs.state(name)).state != "running":
            return state
        time.sleep(0.1)
    raise AssertionError("the job did not end")


def test_jobs_end_with_their_code_and_what_they_printed(tmp_path):
    jobs = Jobs(tmp_path)
    good, bad = jobs.start(["--version"]), jobs.start(["explain", "nowhere"])
    good, bad = finished(jobs, good.job), finished(jobs, bad.job)
    assert (good.state, good.exit_code) == ("done", 0)
    assert good.output.startswith("lora-select ")
    assert (bad.state, bad.exit_code) == ("failed", 2)
    assert "holds no decision.json" in bad.error
    assert jobs.cancel(good.job).state == "done"
    with pytest.raises(InputError, match="no job 'x'"):
        jobs.state("x")


def test_closing_ends_what_still_runs(tmp_path):
    jobs = Jobs(tmp_path)
    started = jobs.start(["ui", "--tracking-uri", f"sqlite:///{tmp_path}/m.db", "--port", "0"])
    jobs.close()
    assert jobs.state(started.job).state in {"cancelled", "failed"}


def parsed_by_the_job(root, tool, **arguments):
    """What the command line of a started job makes of the words that it was given."""
    jobs = Jobs(root)
    state = next(one for one in _job_tools([root], jobs) if one.__name__ == tool)(**arguments)
    jobs.close()
    return _parser().parse_args(json.loads((root / FOLDER / state.job / "command.json").read_text()))


@pytest.mark.parametrize(
    ("model", "data"),
    [("--data=/etc/secret.jsonl", "sample:m"), ("run.yaml", "runs_dir=/tmp/x"), ("--runs-dir=/tmp/x", "--out=/tmp/y")],
)
def test_no_argument_is_read_as_an_option_an_override_or_a_config(tmp_path, model, data):
    (tmp_path / "run.yaml").write_text("dataset: {source: /etc/secret.jsonl}")
    made = parsed_by_the_job(tmp_path, "recommend", model=model, data=data, trainers=["trl", "peft"], serve="vllm")
    config = options.config_of(made, tracking_uri=None)
    assert config.base_model.source == source(model, [tmp_path])
    assert config.dataset.source == data
    assert (config.runs_dir, made.out) == (str(tmp_path / "runs"), str(tmp_path / "recommendation"))
    assert (config.recipes.trainers, config.selection.serve) == (("trl", "peft"), "vllm")


@pytest.mark.parametrize("examples", [0, 4])
def test_examples_in_the_prompt_are_asked_for_by_their_number(tmp_path, examples):
    made = parsed_by_the_job(tmp_path, "recommend", model="sample:m", data="sample:d", few_shot=examples)
    assert options.config_of(made, tracking_uri=None).evaluation.few_shot == examples


def test_retain_is_a_job_of_paths_inside_the_roots(tmp_path):
    made = parsed_by_the_job(tmp_path, "retain", adapter="-a", base="--out=/tmp/x", data="sample:m", out="kept")
    assert (made.adapter, made.base) == (str(tmp_path / "-a"), "--out=/tmp/x")
    assert (made.data, made.out) == ("sample:m", str(tmp_path / "kept"))
    with pytest.raises(InputError, match="outside"):
        parsed_by_the_job(tmp_path, "retain", adapter="a", base="b", data="/etc/passwd", out="kept")


def test_no_link_and_no_pattern_leads_out_of_the_roots(tmp_path):
    root, other = tmp_path / "a", tmp_path / "b"
    for folder in (root / "set", other):
        folder.mkdir(parents=True)
    (other / "secret.jsonl").write_text("{}")
    (root / "link").symlink_to(other)
    (root / "set" / "rows.jsonl").symlink_to(other / "secret.jsonl")
    for name in (f"{root}/*/secret.jsonl", f"{root}/set/*.jsonl", "set/*.jsonl", "set", "link"):
        with pytest.raises(InputError, match=r"outside|is a pattern"):
            source(name, [root])
    (root / "set" / "rows.jsonl").unlink()
    (root / "rows.jsonl").write_text("{}")
    (root / "set" / "rows.jsonl").symlink_to(root / "rows.jsonl")
    assert source("set", [root]) == str(root / "set")


def test_paths_stay_inside_the_roots(tmp_path):
    root, other = tmp_path / "a", tmp_path / "b"
    root.mkdir()
    other.mkdir()
    (root / "link").symlink_to(other)
    assert inside("x/y", [root]) == root / "x/y"
    assert inside(str(other / "z"), [root, other]) == other / "z"
    for path in ("../b", str(other), "link/z", "/etc/passwd", "~/x"):
        with pytest.raises(InputError, match="outside"):
            inside(path, [root])
    assert source("org/model", [root]) == "org/model"
    assert source("sample:x", [root]) == "sample:x"
    for path in ("org/../../x", "link", "./../b"):
        with pytest.raises(InputError, match="outside"):
            source(path, [root])
