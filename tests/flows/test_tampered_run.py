"""One bit and one digit in every file of a real run: each is named by `verify`, and by the next run of the same command."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import tiny_run

from lora_select.audit import run_entries
from lora_select.audit.books import seal
from lora_select.audit.verification import verify

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_model_folder):
    """A finished run of the whole line, and what it takes to run the same command again."""
    folder = tmp_path_factory.mktemp("tampered")
    training = {"epochs": 2, "num_processes": 1}
    tiny_run.written(
        folder, tiny_model_folder, training=training, evaluation={"exact_match_rows": 2, "max_new_tokens": 4}
    )
    run(folder)
    return folder


def run(folder: Path) -> str:
    done = subprocess.run(
        tiny_run.command(folder),
        cwd=tiny_run.ROOT,
        env=tiny_run.environment(folder),
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def harmed(content: bytes, kind: str) -> bytes | None:
    if kind == "bit":
        half = len(content) // 2
        return content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :]
    digits = [match.start() for match in re.finditer(rb"[0-9]", content)]
    if not digits:
        return None
    other = b"8" if content[digits[-1] : digits[-1] + 1] != b"8" else b"3"
    return content[: digits[-1]] + other + content[digits[-1] + 1 :]


def files_of(run: Path) -> list[Path]:
    folders = [run, *(place.folder for place in run_entries.stages(run).values())]
    found = [folder / path for folder in folders for path in (*seal.listing(folder), seal.SEAL)]
    return [path for path in found if not path.is_symlink()]


def test_every_file_of_a_real_run_is_guarded_by_verify(place):
    latest = (place / "runs" / "latest").resolve()
    assert verify(latest).faults == ()
    files = files_of(latest)
    assert {"config.json", "evaluation.json", "promotion.json", "report.json", "plan.json", "dataset.json", "tracking.json",
            "adapter_model.safetensors", "report.html", "spectra.safetensors", "train.parquet"} <= {path.name for path in files}  # fmt: skip
    for path in files:
        content = path.read_bytes()
        for kind in ("bit", "digit"):
            changed = harmed(content, kind) if content else None
            if changed is not None:
                path.write_bytes(changed)
                assert any(str(path) in fault for fault in verify(latest).faults), (path, kind)
        path.write_bytes(content)
    assert verify(latest).faults == ()


def test_the_next_run_names_what_was_changed_and_uses_none_of_it(place):
    """One file of every stage and of the run's folder is changed at once, so that the line need not run once a file."""
    latest = (place / "runs" / "latest").resolve()
    changed = [latest / "config.json"]
    for stage in run_entries.stages(latest).values():
        files = [stage.folder / name for name in sorted(seal.listing(stage.folder))]
        changed.append(next(path for path in files if path.stat().st_size))
    for path in changed:
        path.write_bytes(harmed(path.read_bytes(), "bit"))
    said = run(place)
    for path in changed:
        assert f"{path} was changed" in said, path
    assert verify(place / "runs" / "latest").faults == ()
    shutil.rmtree(place / "runs" / "changed")
