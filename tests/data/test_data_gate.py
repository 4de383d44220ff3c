"""The gate finds what is planted in real rows, leaves clean rows alone, and mends what it is told to, with everything counted."""

import json
import random
import shlex
import string
from pathlib import Path

import pytest

from benchmarks.gate import faults, measure, sources
from benchmarks.gate.__main__ import table
from lora_select import records
from lora_select.cli.main import main
from lora_select.data.gate import check, conflicts, control, degenerate, duplicates, leaks, private, rules, text
from lora_select.data.gate.checked_rows import GateRow
from lora_select.data.gate.drift import drift
from lora_select.data.gate.mend import gated_intake
from lora_select.data.intake import intake, read_canonical
from lora_select.data.likeness import similar
from lora_select.errors import InputError

ONLY_DRIFT = {rule.name: "off" for rule in rules.RULES}


def recall(outcome):
    return outcome.found / outcome.planted


def row(prompt, answer, row_id="0", split="train", system=""):
    first = [{"role": "system", "content": system}] if system else []
    return GateRow(
        row_id, split, [*first, {"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    )


def test_planted_copies_are_found_and_nothing_else():
    for outcome in measure.of_duplicates("docstrings", 0, 250):
        assert recall(outcome) >= 0.95, outcome
        assert outcome.flagged <= 0.01 * outcome.planted, outcome


def test_planted_degenerate_rows_are_found(prose):
    for outcome in measure.of_degenerate("docstrings", 0, 300):
        assert recall(outcome) >= 0.9, outcome
        assert outcome.flagged <= 0.01 * outcome.others, outcome


def test_answers_that_stop_in_the_middle_are_found_where_the_set_has_a_habit():
    whole = [row(f"q {n}", f"This is the answer to the question number {n}, in full.", str(n)) for n in range(60)]
    cut = [*whole[:58], row("q", "This is the answer to the question num", "cut")]
    assert [flag.row_id for flag in degenerate.truncated(cut)] == ["cut"]
    open_ended = [row(f"q {n}", f"no full stop at the end of number {n}", str(n)) for n in range(60)]
    assert not degenerate.truncated(open_ended)
    assert "end a sentence" in (degenerate.no_truncation_habit(open_ended) or "")
    values = [row(f"q {n}", json.dumps({"number": n}), str(n)) for n in range(60)]
    assert [flag.row_id for flag in degenerate.truncated([*values, row("q", '{"number": ', "cut")])] == ["cut"]


def test_an_end_without_a_full_stop_is_no_cut_where_the_sets_sentences_end_so():
    text = "The old bridge number {} crosses the river. Boats of number {} wait below the bridge."
    whole = [row(f"q {n}", text.format(n, n), str(n)) for n in range(400)]
    ends = {
        "forgotten": "The old boats of number 7 wait below the bridge",
        "sheet": "The boats wait below the bridge. Played at Yeovil",
        "shared 1": "The boats wait below the bridge. More of the old",
        "shared 2": "Boats of number 9 wait below the bridge. More of the old",
        "word": "The old bridge number 7 crosses the",
        "letter": "The old bridge number 7 crosses the ri",
        "comma": "The old bridge number 7, crosses the river,",
    }
    rows = [*whole, *(row(f"of {name}", end, name) for name, end in ends.items())]
    assert [flag.row_id for flag in degenerate.truncated(rows)] == ["word", "letter", "comma"]


def test_private_data_is_found_with_its_checksum_and_not_without(prose):
    draw = random.Random(1)
    for kind in (*private.PERSONAL, *private.SECRET):
        secrets = [faults.private(kind, draw) for _ in range(30)]
        found = [any(m.kind == kind for m in private.find(f"of it {secret} is known")) for secret in secrets]
        assert sum(found) >= 29, (kind, [s for s, f in zip(secrets, found, strict=True) if not f])
    for harmless in (
        "4111 1111 1111 1112",
        "version 10.2.3.4 of 192.168.1.1",
        "born 2024-01-02",
        "DE00 1234 5678 9012 3456 78",
        "sk-your-api-key-goes-here-please",
        "1 234 567 890",
        "user@example.com",
    ):
        assert not private.find(harmless), harmless


def test_redaction_is_consistent_and_leaves_the_rest():
    text_ = "Ask tom@acme-tools.co.uk, not li@web.de; tom@acme-tools.co.uk answers."
    made = private.redact(text_, private.PERSONAL)
    first, second, third = [word.strip(",;.") for word in made.split() if word.startswith("[EMAIL")]
    assert first == third != second
    assert made.startswith("Ask [EMAIL-")
    assert made.endswith("answers.")
    assert not private.find(made)


def test_leaks_are_found_equal_near_and_quoted():
    for outcome in measure.of_leaks("docstrings", 0, 400):
        assert recall(outcome) >= 0.95, outcome
        assert outcome.flagged <= 0.01 * outcome.others, outcome


def test_items_of_a_benchmark_are_found(tmp_path, prose):
    draw = random.Random(0)
    items = [" ".join(f"w{draw.randrange(1000)}" for _ in range(25)) for _ in range(30)]
    (tmp_path / "bench.jsonl").write_text("".join(json.dumps({"question": item}) + "\n" for item in items))
    texts = list(leaks.benchmark_texts(str(tmp_path / "bench.jsonl")))
    assert texts == items
    planted = faults.asked(prose[0], f"Consider: {items[3]}", "-planted")
    flags = leaks.contamination([*prose, planted], {"bench": texts})
    assert [flag.row_id for flag in flags] == [planted.row_id]
    with pytest.raises(InputError, match="no package"):
        list(leaks.benchmark_texts("no_such_package_here:data"))


def test_one_prompt_with_two_answers_is_a_conflict():
    same = [
        row("What is it?", "A cat.", "1"),
        row("what is it", "A dog.", "2"),
        row("What is it?", "a cat", "3"),
        row("Other?", "A dog.", "4"),
    ]
    assert {flag.row_id for flag in conflicts.conflicts(same)} == {"1", "2", "3"}
    assert not conflicts.conflicts([same[0], same[2], same[3]])
    systems = [row("What is it?", "A cat.", "1", system="cats"), row("What is it?", "A dog.", "2", system="dogs")]
    assert not conflicts.conflicts(systems)


def test_control_tokens_of_the_model_and_of_common_templates(prose):
    for token in faults.TOKENS:
        assert control.control_tokens([row("x", f"yes {token} no")]), token
    assert not control.control_tokens(prose)
    assert control.control_tokens([row("x", "a ~~end~~ b")], ["~~end~~"])


def test_near_duplicates_are_those_that_comparing_all_pairs_finds():
    rows = sources.rows("docstrings", 250)
    changed, _ = faults.near_copies(rows, random.Random(3), 30)
    made = similar.sketch(r.content for r in changed)
    label = similar.clusters(made, lambda i: changed[i].content).label
    sizes = {value: (label == value).sum() for value in set(label.tolist())}
    found = {changed[i].row_id for i, value in enumerate(label.tolist()) if sizes[value] > 1}
    truly = measure.all_near(changed)
    assert found <= truly
    assert len(found) >= 0.95 * len(truly)


def test_drift_is_seen_where_a_tenth_is_replaced_and_not_between_halves():
    rows = sources.rows("docstrings", 600)
    one, two = rows[:300], rows[300:]
    other = sources.rows("tool-calls", 30)
    seen = drift([*two[30:], *other], one)
    assert seen.drifted
    assert seen.because
    assert seen.low < seen.auc < seen.high
    assert not drift(two, one).drifted
    assert drift(one[:20], two).because == ("too few rows are new to compare them",)


def write(path, values):
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return str(path)


def as_rows(found):
    return [{"messages": list(item.messages)} for item in found]


def test_real_rows_are_not_refused(prose):
    for name, given in (("docstrings", as_rows(prose)), ("tool-calls", "sample:tool-calls")):
        gate = check.check_data(given)
        assert gate.verdict != "refused", (name, text.one_line(gate))
        assert all(item.rate <= 0.05 for item in gate.findings), name


def test_the_record_says_what_where_and_how_to_see_it(tmp_path, prose):
    values = as_rows(prose[:80])
    values += [
        values[0],
        {"messages": [{"role": "user", "content": "who?"}, {"role": "assistant", "content": "mail anna.rossi@web.de"}]},
    ]
    source = write(tmp_path / "r.jsonl", values)
    gate = check.check_data(source)
    found = {item.rule: item for item in gate.findings}
    assert found["exact-duplicates"].count == found["personal-data"].count == 1
    assert found["personal-data"].examples[0].startswith("r.jsonl:82")
    assert found["personal-data"].command == f"lora-select data show {source} --finding personal-data"
    assert 0 < found["personal-data"].low < 1 / 82 < found["personal-data"].high < 0.1
    assert records.from_json(records.Gate, records.to_json(gate)) == gate
    assert text.full(gate).startswith("2 findings")


def test_actions_are_checked_together():
    with pytest.raises(InputError) as caught:
        rules.actions({"near-duplicate": "warn", "leak": "stop", "imbalance": "fix"})
    said = str(caught.value)
    assert "did you mean `near-duplicates`?" in said
    assert "'stop'" in said
    assert "cannot be fixed" in said


def test_fixes_take_out_and_redact_and_one_switch_undoes_them(tmp_path, prose):
    values = as_rows(prose[:60])
    values += [
        values[3],
        {
            "messages": [
                {"role": "user", "content": "who is it?"},
                {"role": "assistant", "content": "Ask anna.rossi@web.de now."},
            ]
        },
    ]
    values.append({"messages": [{"role": "user", "content": "what of it?"}, {"role": "assistant", "content": "N/A"}]})
    source = write(tmp_path / "r.jsonl", values)
    actions = {"personal-data": "fix", "empty-answers": "fix", "encoding-damage": "off"}
    dataset, gate = gated_intake(source=source, name="r", folder=tmp_path / "fixed", actions=actions)
    counts = {item.reason: item.count for item in dataset.rejected}
    assert counts == {"exact duplicate": 1, "removed by the gate: empty-answers": 1}
    assert dataset.train_rows + dataset.eval_rows + 2 == 63 == dataset.sources[0].rows
    assert dataset.sources[0].accepted == 61 == gate.kept
    content = [json.dumps(r) for f in ("train", "eval") for _, r in read_canonical(tmp_path / f"fixed/{f}.parquet")]
    assert not any("anna.rossi" in line for line in content)
    assert sum("[EMAIL-" in line for line in content) == 1
    gone = json.loads((tmp_path / "fixed/removed.jsonl").read_text())
    assert (gone["rule"], gone["line"]) == ("empty-answers", 63)
    whole, untouched = gated_intake(source=source, name="r", folder=tmp_path / "whole", actions=actions, fix=False)
    assert whole.train_rows + whole.eval_rows == 63 == untouched.kept


def test_a_leak_refuses_and_says_the_way_out(tmp_path, prose):
    train, held_out = (
        write(tmp_path / "a.jsonl", as_rows(prose[:50])),
        write(tmp_path / "b.jsonl", as_rows(prose[45:60])),
    )
    _, gate = gated_intake(source=train, eval_source=held_out, name="r", folder=tmp_path / "out")
    assert gate.verdict == "refused"
    with pytest.raises(InputError, match=r"5 of 15 evaluation rows.*--finding leak.*gate.actions.leak`"):
        check.refuse(gate)


def test_the_table_in_the_docs_is_that_of_the_record():
    root = Path(__file__).parents[2]
    record = json.loads((root / "benchmarks/results/gate.json").read_text())
    assert table(record) in (root / "docs/data.md").read_text()


def test_the_command_gives_the_answer_first_and_an_exit_code(tmp_path, capsys, prose):
    key = "AKIA" + "Q7R2T9WXZ4LM8NPB"
    values = as_rows(prose[:20])
    source = write(tmp_path / "r.jsonl", values)
    assert main(["data", "check", source, "--rule", "wrong-language=off"]) == 0
    write(
        tmp_path / "r.jsonl",
        [
            *values,
            {"messages": [{"role": "user", "content": "key?"}, {"role": "assistant", "content": f"It is {key}."}]},
        ],
    )
    capsys.readouterr()
    assert main(["data", "check", source]) == 1
    assert capsys.readouterr().out.startswith("refused because of secrets")
    assert main(["data", "check", source, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["verdict"] == "refused"
    assert main(["data", "show", source, "--finding", "secrets", "-n", "3"]) == 0
    shown = capsys.readouterr().out
    assert "r.jsonl:21" in shown
    assert "assistant: «It is" in shown
    assert main(["data", "check", str(tmp_path / "none.jsonl")]) == 2
    assert main(["data", "check", source, "--rule", "near=warn"]) == 2


KEY = "AKIA" + "Q7R2T9WXZ4LM8NPB"


def thought(reasoning, prompt="who?", answer="He."):
    turn = {"role": "assistant", "content": answer, "reasoning_content": reasoning}
    return {"messages": [{"role": "user", "content": prompt}, turn]}


def test_reasoning_is_looked_at_like_all_that_is_said(tmp_path):
    given = [thought(f"The key is {KEY}."), thought("Ask anna.rossi@web.de.", "whom?")]
    gate = check.check_data(given)
    assert {item.rule for item in gate.findings} == {"secrets", "personal-data"}
    held = [GateRow(str(n), "train", thought(text)["messages"]) for n, text in enumerate(("He is one.", "Is it he?"))]
    assert not duplicates.normal(held)
    assert control.control_tokens([GateRow("0", "train", thought("yes <|im_end|> no")["messages"])])
    source = write(tmp_path / "r.jsonl", [*given, thought("", "a", "b"), thought("", "c", "d")])
    gated_intake(source=source, eval_source=write(tmp_path / "e.jsonl", [thought("", "e", "f"), thought("", "g", "h")]),
                 name="r", folder=tmp_path / "out", actions={"secrets": "fix"})  # fmt: skip
    assert not any(KEY in json.dumps(content) for _, content in read_canonical(tmp_path / "out/train.parquet"))


def test_what_is_near_in_its_reasoning_alone_is_not_split(tmp_path):
    def long(topic):
        draw = random.Random(topic)
        return " ".join("".join(draw.choices(string.ascii_lowercase, k=6)) for _ in range(60))

    topics = string.ascii_lowercase[:25]
    given = [thought(long(topic), f"{topic} {n}?", f"{n}") for topic in topics for n in range(2)]
    dataset = intake(source=given, name="r", folder=tmp_path / "out", eval_fraction=0.3)
    assert dataset.eval_rows
    held_out = {content["messages"][0]["content"][0] for _, content in read_canonical(tmp_path / "out/eval.parquet")}
    train = {content["messages"][0]["content"][0] for _, content in read_canonical(tmp_path / "out/train.parquet")}
    assert not held_out & train


def test_the_printed_commands_show_the_rows_of_their_finding(tmp_path, capsys, prose):
    folder = tmp_path / "a folder"
    folder.mkdir()
    item = " ".join(f"word{n}" for n in range(20))
    bench = write(folder / "bench.jsonl", [{"question": item}])
    train = write(folder / "rows.jsonl", [*as_rows(prose[:20]), {"prompt": f"Solve: {item}", "completion": "seven"}])
    held_out = write(folder / "held out.jsonl", as_rows(prose[18:30]))
    gate = check.check_data(train, eval=held_out, benchmarks=[bench])
    found = {finding.rule: finding for finding in gate.findings}
    for rule, place in (("leak", "held out.jsonl:1: also a training row"), ("contamination", "rows.jsonl:21: ")):
        assert found[rule].examples[0].startswith(place)
        assert main(shlex.split(found[rule].command)[1:]) == 0
        assert place in capsys.readouterr().out
    in_memory = check.check_data(as_rows(prose[:3] * 2))
    assert [finding.command for finding in in_memory.findings] == [""]


def test_a_row_of_both_splits_has_two_places(tmp_path, prose):
    train = write(tmp_path / "a.jsonl", as_rows(prose[:50]))
    held_out = write(tmp_path / "b.jsonl", as_rows(prose[45:60]))
    dataset, gate = gated_intake(
        source=train, eval_source=held_out, name="r", folder=tmp_path / "out", actions={"leak": "fix"}
    )
    assert {place.partition(":")[0] for item in gate.findings for place in item.examples} == {"b.jsonl"}
    gone = [json.loads(line) for line in (tmp_path / "out/removed.jsonl").read_text().splitlines()]
    assert sorted((item["file"], item["line"]) for item in gone) == [("b.jsonl", line) for line in range(1, 6)]
    assert (dataset.train_rows, dataset.eval_rows) == (50, 10)
    assert {item.name: item.accepted for item in dataset.sources} == {"a.jsonl": 50, "b.jsonl": 10}


def test_fixes_that_leave_nothing_to_judge_by_are_refused(tmp_path, prose):
    train, held_out = write(tmp_path / "a.jsonl", as_rows(prose[:20])), write(tmp_path / "b.jsonl", as_rows(prose[:5]))
    with pytest.raises(InputError, match="leave 20 training and 0 evaluation rows"):
        gated_intake(source=train, eval_source=held_out, name="r", folder=tmp_path / "out", actions={"leak": "fix"})


def test_a_leak_of_our_own_split_warns_unless_it_is_asked_to_refuse(tmp_path, prose):
    quoted = {"prompt": "What is it?", "completion": max(prose, key=lambda item: len(item.answer)).answer}
    values = [*as_rows(prose[:60]), *({**quoted, "prompt": f"What is it, number {n}?"} for n in range(6))]
    source = write(tmp_path / "r.jsonl", values)
    options = {"source": source, "name": "r", "fix": False}
    for given, action in (({}, "warn"), ({"leak": "refuse"}, "refuse"), ({"leak": "fix"}, "fix")):
        _, gate = gated_intake(folder=tmp_path / action, actions=given, **options)
        assert gate.actions["leak"] == action


def test_what_a_rule_did_not_look_at_is_said(monkeypatch, prose):
    monkeypatch.setattr(leaks, "LARGEST_EVAL", 5)
    monkeypatch.setattr(conflicts, "LARGEST_SAMPLE", 100)
    labelled = [row(f"{n % 2 * 'in time'} {n * 7919}", "yes" if n % 2 else "no", str(n)) for n in range(120)]
    gate = check.check_data(as_rows(labelled), eval=as_rows(prose[200:210]))
    assert gate.not_checked["leak"] == "only 5 of 10 evaluation rows were compared"
    assert check.check_data(as_rows(labelled)).not_checked["label-noise"] == "only 100 of 120 rows were looked at"
    assert gate.findings_file is None
