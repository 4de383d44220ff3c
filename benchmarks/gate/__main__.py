"""Measure every check of the gate on planted faults and on clean rows.

    python -m benchmarks.gate [--seeds 3] [--rows 600] [--drift 20] [--only NAME] [--out benchmarks/results/gate.json]

Writes the counts of every check, source and seed, and the table of docs/data.md.
"""

import argparse
import json
import time
from collections import defaultdict
from pathlib import Path

from benchmarks.gate import measure, sources
from lora_select.data.gate import check, rules

GROUPS = {
    "duplicates": lambda seed, rows: [o for s in measure.PROSE for o in measure.of_duplicates(s, seed, rows)],
    "leaks": lambda seed, rows: [o for s in ("word-problems", "news") for o in measure.of_leaks(s, seed, rows)],
    "contamination": lambda seed, rows: [
        o for s in ("docstrings", "news", "tweet-entities") for o in measure.of_contamination(s, seed, rows)
    ],
    "conflicts": lambda seed, rows: measure.of_conflicts(seed, rows),
    "degenerate": lambda seed, rows: [o for s in measure.PROSE for o in measure.of_degenerate(s, seed, rows)],
    "private": lambda seed, rows: [o for s in measure.PROSE for o in measure.of_private(s, seed, rows)],
    "tokens": lambda seed, rows: [o for s in measure.PROSE for o in measure.of_tokens(s, seed, rows)],
}
UNSEEN = {"unseen": lambda seed, rows: measure.of_cut("dialogue", seed, rows)}
"""On sources that no rule was shaped on; not in the table."""
DRIFTS = (("word-problems", "docstrings", 500), ("word-problems", "docstrings", 659))
"""Source, where the strange rows are from, rows a half."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=600)
    parser.add_argument("--drift", type=int, default=20, help="trials a size")
    parser.add_argument("--only", nargs="*", default=[*GROUPS, *UNSEEN, "drift", "clean"])
    parser.add_argument("--out", default="benchmarks/results/gate.json")
    parsed = parser.parse_args()
    out = Path(parsed.out)
    found = json.loads(out.read_text()) if out.is_file() else {}
    for name in parsed.only:
        begun = time.process_time()
        if name == "drift":
            found[name] = _drift(parsed.drift)
        elif name == "clean":
            found[name] = _clean(parsed.rows)
        else:
            outcomes = [o for seed in range(parsed.seeds) for o in (GROUPS | UNSEEN)[name](seed, parsed.rows)]
            found[name] = [vars(o) for o in outcomes]
            _print(outcomes)
        print(f"{name}: {time.process_time() - begun:.0f} CPU seconds", flush=True)
        out.write_text(json.dumps(found, indent=1) + "\n")
    print(table(found))


def _drift(trials: int) -> list[dict]:
    made = []
    for source, other, half in DRIFTS:
        results = [measure.of_drift(source, other, half, seed) for seed in range(trials)]
        made.append(
            {
                "source": source,
                "other": other,
                "rows_a_half": half,
                "trials": trials,
                **{key: sum(r[key].drifted for r in results) for key in ("alike", "replaced")},
                **{f"p_{key}": [r[key].p for r in results] for key in ("alike", "replaced")},
            }
        )
        print(made[-1], flush=True)
    return made


def _clean(most: int) -> list[dict]:
    """Every rule on every source as it is: what is flagged, and that nothing is refused."""
    made = []
    for source in sources.SOURCES:
        rows = sources.rows(source, most)
        given = ({"messages": list(row.messages), "tools": row.tools} for row in rows)
        gate = check.check_data(
            given, actions={name: "warn" for name, action in rules.DEFAULTS.items() if action == "fix"}
        )
        made.append(
            {
                "source": source,
                "rows": len(rows),
                "verdict": gate.verdict,
                **{item.rule: item.count for item in gate.findings},
            }
        )
        print(made[-1], flush=True)
    return made


def table(found: dict) -> str:
    """The table of docs/data.md."""
    totals: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for name in GROUPS:
        for item in found.get(name, []):
            for place, key in enumerate(("planted", "found", "others", "flagged")):
                totals[item["check"]][place] += item[key]
    lines = [
        "| check | planted | found | recall | rows without | flagged | false alarms |",
        "|---|---|---|---|---|---|---|",
    ]
    for check_name, (planted, hits, others, flagged) in totals.items():
        lines.append(
            f"| {check_name} | {planted} | {hits} | {hits / planted:.1%} | {others} | {flagged} | {flagged / max(1, others):.2%} |"
        )
    return "\n".join(lines)


def _print(outcomes: list[measure.Outcome]) -> None:
    for item in outcomes:
        print(
            f"{item.check:24}{item.source:16}{item.seed:3}  recall {item.found:4}/{item.planted:<4} {item.found / item.planted:7.1%}"
            f"   flagged {item.flagged:4}/{item.others:<6} {item.flagged / max(1, item.others):7.2%}",
            flush=True,
        )


if __name__ == "__main__":
    main()
