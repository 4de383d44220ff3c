"""The command line: every command's answer and exit code, on records of a real decision."""

import dataclasses
import json
import re
import shutil

import mlflow_samples
import pytest

from lora_select import records
from lora_select.cli import main as cli
from lora_select.records import Constraints
from lora_select.selection.rule import select
from lora_select.spectral.measuring_pass import analyze

INPUTS = Constraints(None, False, None, True, 0, None, None, None, None, 50, None, {})


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, tiny_model_folder):
    """A run's folder with a real profile, real spectra and the decision that follows from them."""
    from lora_select import models
    from lora_select.data.intake import intake
    from lora_select.data.labels import tokens
    from lora_select.data.profile import profile
    from lora_select.variants import CATALOGUE

    folder = tmp_path_factory.mktemp("run")
    rows = [{"prompt": f"question {n}", "completion": f"answer {n}"} for n in range(60)]
    (folder / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = intake(source=str(folder / "d.jsonl"), name="d", folder=folder)
    base = models.resolve(str(tiny_model_folder), cache=folder / "cache")
    measured = profile(
        dataset, folder, base, max_length=64, base_loss_rows=2, dtype="float32", device="cpu", folder=folder
    )
    token_rows = tokens.read_rows(folder / "train_tokens.parquet")
    batches = [tokens.collate(token_rows[i : i + 2], 3) for i in range(0, 16, 2)]
    spectra = analyze(
        models.load_model(base.path), batches, loss_fn=tokens.label_loss, variants=CATALOGUE, sketch_size=16, seed=0,
        folder=folder, dataset_digest=dataset.digest, model_digest=base.digest,
    )  # fmt: skip
    for name, record in (("profile", measured), ("spectra", spectra), ("decision", select(measured, spectra, INPUTS))):
        records.write(folder / f"{name}.json", record)
    return folder


def test_explain_says_what_and_why(run_folder, capsys):
    assert cli.main(["explain", str(run_folder)]) == 0
    said = capsys.readouterr().out
    assert "lora-all-linear-r16" in said
    assert "abstain" in said


def test_explain_ends_with_what_fewer_bits_keep(run_folder, tmp_path, capsys):
    shutil.copytree(run_folder, tmp_path / "run")
    made = dataclasses.replace(mlflow_samples.evaluation(tmp_path / "run"), stored=mlflow_samples.stored())
    records.write(tmp_path / "run" / "evaluation.json", made)
    assert cli.main(["explain", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out.endswith("keeps of its gain in loss: 96.2 % (94.0 to 98.0) as nf4.\n")


def test_explain_in_json_gives_the_sentences_that_the_text_begins_with(run_folder, capsys):
    assert cli.main(["explain", str(run_folder)]) == 0
    text = capsys.readouterr().out.splitlines()
    assert cli.main(["explain", str(run_folder), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)["answer"]
    assert len(answer) >= 2
    assert text[: len(answer) + 1] == [*answer, ""]


def test_replay_gives_the_same_bytes(run_folder, capsys):
    assert cli.main(["replay", str(run_folder)]) == 0
    assert "byte for byte" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["decision.json", "spectra.json", "profile.json"])
def test_replay_sees_one_changed_digit(run_folder, tmp_path, capsys, name):
    for file in ("profile.json", "spectra.json", "decision.json"):
        (tmp_path / file).write_text((run_folder / file).read_text())
    text = (tmp_path / name).read_text()
    place = re.search(r"\d\.\d*(\d)", text).start(1)
    digit = str((int(text[place]) + 1) % 10)
    (tmp_path / name).write_text(text[:place] + digit + text[place + 1 :])
    assert cli.main(["replay", str(tmp_path)]) == 1
    assert "does not follow" in capsys.readouterr().out


def test_replay_of_a_broken_decision_is_a_difference(run_folder, tmp_path, capsys):
    for file in ("profile.json", "spectra.json"):
        (tmp_path / file).write_text((run_folder / file).read_text())
    (tmp_path / "decision.json").write_text((run_folder / "decision.json").read_text()[:-20])
    assert cli.main(["replay", str(tmp_path)]) == 1
    assert "not a Decision record" in capsys.readouterr().out


def test_no_such_run_is_bad_input(tmp_path, capsys):
    assert cli.main(["explain", str(tmp_path / "nowhere")]) == 2
    assert "holds no decision.json" in capsys.readouterr().err


def test_compare_shows_a_table_without_evaluation(run_folder, capsys):
    assert cli.main(["compare", str(run_folder), str(run_folder)]) == 0
    said = capsys.readouterr().out
    assert said.count("lora-all-linear-r16") == 2
    assert "no MLflow link" in said


def test_register_without_a_server_says_so(run_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    arguments = ["data", "register", str(run_folder / "d.jsonl"), "--runs", str(tmp_path / "runs")]
    assert cli.main(arguments) == 0
    assert "no Prefect server is configured" in capsys.readouterr().out
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    assert cli.main(arguments) == 0
    assert "was registered before" in capsys.readouterr().out
    assert cli.main([*arguments, "--again"]) == 1
    assert "did not take the event" in capsys.readouterr().err
    assert cli.main(["data", "register", str(tmp_path / "none.jsonl")]) == 2


def test_doctor_names_each_fault_with_its_remedy(capsys, monkeypatch):
    from lora_select.cli import doctor

    monkeypatch.setitem(doctor.PINNED, "torch", "1.0.0")
    monkeypatch.setitem(doctor.PINNED, "no-such-package", "1.0.0")
    monkeypatch.setattr(doctor, "_deepspeed", list)
    assert cli.main(["doctor", "--tracking-uri", "http://127.0.0.1:9"]) == 1
    said = capsys.readouterr().out
    assert re.search(r"BAD +torch .*\n +-> .*1\.0\.0: pip install torch==1\.0\.0", said)
    assert "no-such-package        not installed" in said
    assert re.search(r"BAD +mlflow store .*does not answer.*\n +-> start it", said)
    assert "3 faults" in said


def test_pages_and_doctor_look_where_mlflow_says(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    parser = cli._parser()
    for command in ("ui", "doctor"):
        assert parser.parse_args([command]).tracking_uri == "http://127.0.0.1:9"


def test_the_doctor_asks_for_the_versions_of_the_lock():
    from pathlib import Path

    from lora_select.cli import doctor

    lines = (Path(__file__).parents[2] / "infra/lock/base.txt").read_text().splitlines()
    lines += (Path(__file__).parents[2] / "infra/lock/torch-cpu.txt").read_text().splitlines()
    locked = dict(line.split()[0].split("+")[0].split("==") for line in lines if "==" in line and line[0].isalpha())
    assert {name: locked[name] for name in doctor.PINNED} == doctor.PINNED


@pytest.mark.parametrize("uri", ["postgresql://ann:hunter22@127.0.0.1:9/mlflow", "http://ann:hunter22@127.0.0.1:9"])
def test_doctor_asks_the_stores_own_port_and_shows_no_password(uri, monkeypatch):
    from lora_select.cli import doctor

    for found in (doctor._tracking(uri), doctor._tracking(uri.replace("hunter22", "${NOT_SET}"))):
        assert not found.ok
        assert "hunter22" not in str(found)
    assert "127.0.0.1:9" in doctor._tracking(uri).found
    assert "NOT_SET, which is not set" in doctor._tracking(uri.replace("hunter22", "${NOT_SET}")).found
    monkeypatch.setenv("PREFECT_API_URL", "http://ann:hunter22@127.0.0.1:9/api")
    assert "hunter22" not in str(doctor._prefect())


def test_doctor_finds_the_profiles_dead_server_a_home_that_takes_nothing_and_ports(tmp_path, monkeypatch):
    from lora_select.cli import doctor

    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    profile = '[profiles.local]\nPREFECT_API_URL = "http://127.0.0.1:9/api"\n'
    (tmp_path / "profiles.toml").write_text(f'active = "local"\n{profile}')
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    (server,) = doctor._prefect()
    assert (server.ok, server.found) == (False, "http://127.0.0.1:9/api does not answer")
    (tmp_path / "file").touch()
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "file" / "home"))
    none, home = doctor._prefect()
    assert (none.ok, home.ok) == (True, False)
    assert "cannot be written (Not a directory)" in home.found
    assert [found.ok for found in doctor._ports()] == [True]
    monkeypatch.setattr(doctor.socket, "create_server", _no_port)
    assert "no port of 127.0.0.1 can be used (Cannot assign requested address)" in doctor._ports()[0].found


def _no_port(*_, **__):
    raise OSError(99, "Cannot assign requested address")


def test_sigterm_ends_a_command_as_python_ends(tmp_path):
    import os
    import signal

    from lora_select.cli.ending import exit_code

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        exit_code(lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert ended.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before
    assert exit_code(lambda: 7) == 7


def test_help_does_not_import_the_heavy_libraries():
    import subprocess
    import sys

    script = "import sys, lora_select.cli; print([m for m in ('torch', 'mlflow', 'transformers') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_doctor_knows_the_stack_and_an_open_server_is_a_fault(tmp_path):
    import http.server
    import json
    import threading

    from lora_select.cli import doctor

    assert doctor._stack(tmp_path) == []

    class Answers(http.server.BaseHTTPRequestHandler):
        status = 401

        def do_GET(self):
            self.send_response(self.status)
            self.end_headers()

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        (tmp_path / ".stack").mkdir()
        ports = {"mlflow": server.server_port, "prefect": 9, "postgres": server.server_port}
        (tmp_path / ".stack" / "stack.json").write_text(json.dumps({"ports": ports}))
        found = {item.name: item for item in doctor._stack(tmp_path)}
        assert {name: item.ok for name, item in found.items()} == {
            "stack: mlflow": True,
            "stack: prefect": False,
            "stack: postgres": True,
        }
        Answers.status = 200
        opened = {item.name: item for item in doctor._stack(tmp_path)}["stack: mlflow"]
        assert not opened.ok
        assert "without a password" in opened.found
        server.shutdown()
