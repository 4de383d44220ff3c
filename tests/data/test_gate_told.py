"""What the gate and `data show` tell a person is so."""

import json
import os
import random
import subprocess
import sys

from lora_select.cli.main import main
from lora_select.data.gate import check

KEY = "AKIA" + "Q7R2T9WXZ4LM8NPB"


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_labels_that_no_classifier_can_tell_are_not_called_wrong():
    """The answer is the first of three words, so letters of the prompt say little of it."""
    draw = random.Random(0)
    fruits = ("lime", "apple", "kiwi", "grape", "melon", "fig", "plum", "pear", "cherry", "lemon")
    chosen = [draw.choices(fruits, k=4) for _ in range(220)]
    gate = check.check_data(
        [
            {"prompt": f"Case {n}: repeat the first of {' '.join(four)}", "completion": four[0]}
            for n, four in enumerate(chosen)
        ]
    )
    assert "label-noise" not in [item.rule for item in gate.findings]
    assert "classifier" in gate.not_checked["label-noise"]
    assert "too few" in check.check_data([{"prompt": "is it?", "completion": "yes"}]).not_checked["label-noise"]


def test_the_first_line_counts_what_refuses_and_says_that_there_is_more(tmp_path, capsys):
    answers = ["N/A", "I'm sorry, but I can't help with that.", f"It is {KEY}.", "anna.rossi@web.de", "a <|im_end|> b"]
    given = [{"prompt": f"question {n}?", "completion": answer} for n, answer in enumerate(answers)]
    source = write(tmp_path / "r.jsonl", [*given, {"prompt": "question 5?", "completion": "cafÃ©", "id": 1}])
    assert main(["data", "check", source]) == 1
    said = capsys.readouterr().out
    assert said.startswith("refused because of secrets 1, of 6 rows; also ")
    assert ", 1 more\n" in said
    assert "`id` in 1 row is not used" in said
    assert main(["data", "show", source, "--finding", "secret"]) == 2
    assert "--finding 'secret'" in (error := capsys.readouterr().err)
    assert "`secrets`" in error
    assert main(["data", "show", source, "--finding", "drift"]) == 2
    assert "whole set" in capsys.readouterr().err


def test_a_turn_that_is_not_learnt_is_not_shown_as_learnt(tmp_path, capsys):
    said = [("user", "q", 1), ("assistant", "bad draft", 0), ("user", "better", 1), ("assistant", "good", 1)]
    turns = [{"role": role, "content": text, "weight": weight} for role, text, weight in said]
    assert main(["data", "show", write(tmp_path / "r.jsonl", [{"messages": turns}])]) == 0
    shown = capsys.readouterr().out
    assert "assistant: bad draft\n" in shown
    assert "assistant: «good»\n" in shown


def test_rows_of_which_nothing_is_shown_are_told(tmp_path, tiny_model_folder, capsys):
    source = write(tmp_path / "r.jsonl", [{"prompt": "a long question", "completion": "b"}])
    for option, value in (("-n", "0"), ("--max-length", "1")):
        assert main(["data", "show", source, option, value]) == 2
        assert f"{option} is {value}" in capsys.readouterr().err
    assert main(["data", "show", source, "--model", str(tiny_model_folder), "--max-length", "4"]) == 0
    assert "begins after the first 4 tokens" in capsys.readouterr().out


def test_no_terminal_and_no_reader_ends_in_a_traceback(tmp_path):
    """An encoding that has not the letters, and a reader that went away, as `| head` does."""
    source = write(tmp_path / "r.jsonl", [{"prompt": "q", "completion": "é"}])
    command = [sys.executable, "-m", "lora_select.cli.main", "data", "show", source]
    narrow = {**os.environ, "PYTHONIOENCODING": "ascii"}
    said = subprocess.run(command, env=narrow, capture_output=True, text=True, check=True)
    assert r"assistant: \xab\xe9\xbb" in said.stdout
    read, wrote = os.pipe()
    os.close(read)
    gone = subprocess.run(command, stdout=wrote, stderr=subprocess.PIPE, text=True)
    os.close(wrote)
    assert (gone.returncode, gone.stderr) == (141, "")
