"""A dataset beside an earlier version of it: unchanged, grown by so many rows, or drifted."""

import json

from benchmarks.gate import sources
from lora_select.data.gate import check, rules
from lora_select.data.intake import intake
from lora_select.data.versions import compare

ONLY_DRIFT = {rule.name: "off" for rule in rules.RULES}


def write(path, values):
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return str(path)


def as_rows(found):
    return [{"messages": list(item.messages)} for item in found]


def test_a_version_beside_an_earlier_one_is_unchanged_grown_or_drifted(tmp_path, prose):
    base = as_rows(prose[:300])
    old = write(tmp_path / "old.jsonl", base)

    def beside(values):
        return check.check_data(write(tmp_path / "new.jsonl", values), against=old, actions=ONLY_DRIFT)

    same, grown = beside(base[::-1]), beside(as_rows(prose))
    assert (same.change, same.verdict) == ("unchanged", "ok")
    assert grown.change == "grown by 100 rows"
    calls = [{"messages": list(item.messages)[-2:]} for item in sources.rows("tool-calls", 100)]
    other = [{"messages": [m["messages"][0], {"role": "assistant", "content": "call()"}]} for m in calls]
    changed = beside([*base[:200], *other])
    assert changed.change == "100 rows added, 100 removed, 200 unchanged"
    assert [item.rule for item in changed.findings] == [rules.DRIFT]
    assert changed.findings[0].examples


def test_versions_say_unchanged_grown_and_drifted(tmp_path, prose):
    def version(name, values):
        folder = tmp_path / name
        return intake(source=write(tmp_path / f"{name}.jsonl", values), name=name, folder=folder), folder

    base = as_rows(prose[:300])
    old, same, grown = version("a", base), version("b", base[::-1]), version("c", as_rows(prose[:302]))
    calls = [{"messages": list(item.messages)[-2:]} for item in sources.rows("tool-calls", 100)]
    other = [{"messages": [m["messages"][0], {"role": "assistant", "content": "call()"}]} for m in calls]
    seen = {item: compare(*item, *old, tmp_path) for item in (same, grown, version("d", [*base, *other]))}
    assert [change.verdict for change in seen.values()] == ["unchanged", "grown", "drifted"]
    assert (same[0].digest, seen[same].sentence, seen[same].unchanged) == (old[0].digest, "unchanged", 300)
    assert seen[grown].sentence == "grown by 2 rows"
    assert [change.drift is None for change in seen.values()] == [True, True, False]
    *_, last = seen.values()
    assert last.sentence.startswith("drifted, because ")
    assert last.sentence.endswith("; new: d.jsonl; gone: a.jsonl (grown by 100 rows)")
