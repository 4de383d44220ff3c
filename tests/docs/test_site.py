"""The site: its navigation names every page, its short pages are short, and every command on them runs."""

import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from recipe_samples import chats, write_jsonl

from lora_select.cli import main as cli
from lora_select.cli import options

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
WALKED = ["quickstart.md", "tasks/forgot.md", "tasks/learnt-nothing.md", "tasks/trainer-files.md", "tasks/audit.md"]
"""In the order in which a reader would: later pages look at the first one's run."""
SHORT = {
    "recommend": ["--microbatches", "4", "--sketch-size", "8", "--batch-size", "8", "--max-length", "512"],
    "finetune": [
        "--microbatches", "4", "--sketch-size", "8", "--batch-size", "8", "--max-length", "512", "--max-eval-rows", "16",
        "--num-processes", "1",
    ],
    "retain": ["--tokens", "1024", "--max-length", "256"],
}  # fmt: skip
"""What is added so that a tiny model is measured in seconds."""


def commands(page: str) -> list[list[str]]:
    """The words of every line of every `sh` block."""
    blocks = re.findall(r"^```sh\n(.*?)^```", (DOCS / page).read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return [shlex.split(line, comments=True) for block in blocks for line in block.splitlines() if line.strip()]


def navigation() -> list[str]:
    text = (ROOT / "infra" / "site" / "mkdocs.yml").read_text(encoding="utf-8")
    return re.findall(r"^ +- (?:[^:\n]+: )?(\S+\.md)$", text, flags=re.MULTILINE)


def test_the_navigation_names_every_page_once_and_the_lab_book_last():
    named = navigation()
    assert sorted(named) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))
    assert named[-1] == "log.md"


@pytest.mark.parametrize("page", [*WALKED, "index.md", "gallery.md"])
def test_a_page_is_short_with_one_number_a_sentence_at_most(page):
    text = (DOCS / page).read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 90
    assert [line for line in text.splitlines() if len(line) > 120] == []
    prose = re.sub(r"```[\s\S]*?```|`[^`]*`|^\|.*$|\]\([^)]*\)", " ", text, flags=re.MULTILINE)
    sentences = re.split(r"(?<=[.:!?])\s+", " ".join(prose.split()))
    assert [one for one in sentences if len(re.findall(r"(?<![\w.`/=-])\d[\d.,]*(?![\w`])", one)) > 1] == []


def shown(page: str) -> list[str]:
    """Every line of a page's blocks that calls `lora-select`."""
    fenced = re.findall(r"^```\w*\n(.*?)^```$", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [line for block in fenced for line in block.splitlines() if line.startswith("lora-select ")]


WITH_COMMANDS = [page for page in ("../README.md", *(page for page in navigation() if page != "log.md")) if shown(page)]


def test_the_pages_that_are_walked_show_commands():
    assert set(WALKED) < set(WITH_COMMANDS)


@pytest.mark.parametrize("page", WITH_COMMANDS)
def test_every_command_is_one_that_the_parser_takes(page):
    for line in shown(page):
        parsed, rest = cli._parser().parse_known_args(shlex.split(line, comments=True)[1:])
        options.take(parsed, rest)


@pytest.fixture(scope="module")
def place(tiny_model_folder, tmp_path_factory):
    """What a reader has: a model, rows, chats, an adapter that was trained elsewhere."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("reader")
    shutil.copytree(tiny_model_folder, folder / "model")
    write_jsonl(folder / "rows.jsonl", chats(80))
    write_jsonl(folder / "chats.jsonl", [reply(number) for number in range(40)])
    config = LoraConfig(r=4, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(folder / "model"), config).save_pretrained(folder / "adapter")
    return folder


def reply(number: int) -> dict:
    words = ["tell", "me", "more", "about", "rivers", "lakes", "hills", "towns"]
    asked, said = (" ".join(words[(number * step + k) % 8] for k in range(6)) for step in (3, 5))
    return {"messages": [{"role": "user", "content": f"{asked} {number}"}, {"role": "assistant", "content": said}]}


@pytest.mark.slow
@pytest.mark.parametrize("page", WALKED)
def test_every_command_of_the_page_runs(place, page):
    walked = place / "walked.json"
    done = json.loads(walked.read_text()) if walked.exists() else []
    for before in [*WALKED[: WALKED.index(page)], page]:
        if before not in done:
            for words in commands(before):
                run(place, words)
            done.append(before)
            walked.write_text(json.dumps(done))


def run(place, words):
    assert words[0] == "lora-select"
    more = SHORT.get(words[1], [])
    ran = subprocess.run(
        [shutil.which("lora-select") or "lora-select", *words[1:], *more],
        cwd=place, env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    none_before = words[1] == "rollback" and "knows no champion of rows before version 1" in ran.stderr
    assert ran.returncode == 0 or none_before, f"{shlex.join(words)}: {ran.stdout[-2000:]} {ran.stderr[-3000:]}"
