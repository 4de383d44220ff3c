"""The gate's record for people: the answer first, then a small table, then what to do."""

from lora_select.records import Finding, Gate

NAMES = {"refuse": "refused", "warn": "warned", "fix": "to mend"}


def one_line(gate: Gate) -> str:
    """`ok`, `N findings` or `refused`, in one line."""
    rows = _rows(gate.rows)
    if gate.verdict == "ok":
        return f"ok: {rows}, nothing found{_left_out(gate)}"
    others = [item for item in gate.findings if item.action != "refuse"]
    warned = ", ".join([*map(_named, others[:4]), *[f"{len(others) - 4} more"] * (len(others) > 4)])
    if gate.verdict == "refused":
        also = f"; also {warned}" if others else ""
        return f"refused because of {', '.join(map(_named, gate.refusals))}, of {rows}{also}{_left_out(gate)}"
    return f"{_count(gate)}: {rows}; {warned}{_left_out(gate)}"


def full(gate: Gate) -> str:
    """The answer, a table of findings with examples, figures, and what was not checked."""
    lines = [one_line(gate), ""]
    if gate.change:
        lines += [f"beside the other dataset: {gate.change}", ""]
    for item in gate.findings:
        rate = "" if item.of <= 1 else f"  {item.rate:.1%} ({item.low:.1%} to {item.high:.1%})"
        lines.append(
            f"{NAMES.get(item.action, item.action):8} {item.rule:22}{item.count if item.of > 1 else '':>7}{rate}"
        )
        lines.append(f"         {item.sentence}")
        lines += [f"           {example}" for example in item.examples[:3]]
        lines += [f"         {item.command}"] * bool(item.command)
    if gate.rejected:
        lines += ["", "left out while reading"]
        lines += [f"  {count:>7,}  {reason}" for reason, count in gate.rejected.items()]
    for title, pairs in (("files not read", gate.left_out), ("keys and turns", dict.fromkeys(gate.notes, ""))):
        if pairs:
            lines += ["", title, *(f"  {name}{f': {why}' if why else ''}" for name, why in pairs.items())]
    if gate.figures:
        lines += ["", "figures"]
        lines += [f"  {name.replace('_', ' '):42}{value:>12,.6g}" for name, value in gate.figures.items()]
    asked = {name: why for name, why in gate.not_checked.items() if why != "off"}
    if asked:
        lines += ["", "not checked"]
        lines += [f"  {name:22} {why}" for name, why in asked.items()]
    return "\n".join(lines)


def _named(item: Finding) -> str:
    return f"{item.rule} {item.count:,}" if item.of > 1 else item.rule


def _rows(count: int) -> str:
    return f"{count:,} row{'s' * (count != 1)}"


def _count(gate: Gate) -> str:
    return f"{len(gate.findings)} finding{'s' if len(gate.findings) > 1 else ''}"


def _left_out(gate: Gate) -> str:
    total = sum(gate.rejected.values())
    return f"; {_rows(total)} could not be used" if total else ""
