"""The table of rules: what each looks at, what is done by default, and what its finding says."""

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, get_args

from lora_select.data.gate import balance, conflicts, control, degenerate, duplicates, leaks, private
from lora_select.data.gate.checked_rows import Flag, GateRow
from lora_select.errors import InputError

Action = Literal["refuse", "warn", "fix", "off"]
Check = Callable[[Sequence[GateRow]], list[Flag]]


@dataclass(frozen=True)
class Context:
    """What some checks need beside the rows: the control tokens of a model, and its name; the texts of each benchmark by its name."""

    tokens: tuple[str, ...] = ()
    benchmarks: Mapping[str, Iterable[str]] = field(default_factory=dict)
    model: str | None = None


@dataclass(frozen=True)
class Rule:
    """A rule of the gate.

    `fix` says what the action `fix` does: remove the rows, redact them, or None where nothing can be done. `says` follows the count
    and `of`, which names what is counted.
    """

    name: str
    default: Action
    fix: Literal["remove", "redact"] | None
    of: Literal["train", "eval", "all"]
    says: str


RULES: tuple[Rule, ...] = (
    Rule("exact-duplicates", "fix", "remove", "all", "rows are copies of another"),
    Rule(
        "normalised-duplicates",
        "warn",
        "remove",
        "train",
        "training rows differ from another only in case, punctuation or spaces",
    ),
    Rule("near-duplicates", "warn", "remove", "train", "training rows are nearly the same as another"),
    Rule("leak", "refuse", "remove", "eval", "evaluation rows are given away by training rows"),
    Rule("contamination", "refuse", "remove", "train", "training rows hold items of a benchmark"),
    Rule("conflicting-answers", "warn", "remove", "all", "rows have a prompt that has another answer elsewhere"),
    Rule("label-noise", "warn", "remove", "all", "rows have a label that the other rows speak against"),
    Rule("empty-answers", "warn", "remove", "all", "rows have an answer that says nothing"),
    Rule("repeated-text", "warn", "remove", "all", "rows have an answer that repeats itself"),
    Rule("refusals", "warn", "remove", "all", "rows have an answer that declines or speaks of being a language model"),
    Rule("truncated-answers", "warn", "remove", "all", "rows have an answer that seems to stop in the middle"),
    Rule("wrong-language", "warn", "remove", "all", "rows are in another language than the set"),
    Rule("encoding-damage", "warn", "remove", "all", "rows hold damaged text"),
    Rule("personal-data", "warn", "redact", "all", "rows hold personal data"),
    Rule("secrets", "refuse", "redact", "all", "rows hold keys or passwords"),
    Rule("control-tokens", "warn", "remove", "all", "rows hold control tokens of a chat template inside a turn"),
    Rule("imbalance", "warn", None, "train", "training rows weigh far more than the others"),
)
BY_NAME = {rule.name: rule for rule in RULES}
DRIFT = "drift"
DEFAULTS: Mapping[str, Action] = {**{rule.name: rule.default for rule in RULES}, DRIFT: "warn"}
SLOW = ("label-noise", "wrong-language")
"""Left out above this many rows, where they would cost minutes; the record says so."""

SLOW_ABOVE = 200_000


def checks(context: Context) -> dict[str, Check]:
    """The function of each rule."""
    return {
        "exact-duplicates": duplicates.exact,
        "normalised-duplicates": duplicates.normal,
        "near-duplicates": duplicates.near,
        "leak": leaks.leaks,
        "contamination": partial(leaks.contamination, benchmarks=context.benchmarks),
        "conflicting-answers": conflicts.conflicts,
        "label-noise": conflicts.label_noise,
        "empty-answers": degenerate.empty,
        "repeated-text": degenerate.repeated,
        "refusals": degenerate.refusals,
        "truncated-answers": degenerate.truncated,
        "wrong-language": degenerate.wrong_language,
        "encoding-damage": degenerate.damaged,
        "personal-data": private.personal,
        "secrets": private.secrets,
        "control-tokens": partial(control.control_tokens, tokens=context.tokens),
        "imbalance": balance.imbalance,
    }


def limits() -> dict[str, Callable[[Sequence[GateRow]], str | None]]:
    """Of rules that have nothing to judge by in some sets, or look at a part of large ones: why that is so here, or None."""
    return {
        "leak": leaks.not_compared,
        "label-noise": conflicts.not_compared,
        "truncated-answers": degenerate.no_truncation_habit,
    }


def meant(name: str) -> str:
    """The way out for a name that is no rule: the nearest one, or all of them."""
    near = difflib.get_close_matches(name, DEFAULTS, n=1)
    return f"did you mean `{near[0]}`?" if near else f"rules: {', '.join(DEFAULTS)}"


def actions(given: Mapping[str, str] | None = None) -> dict[str, Action]:
    """The action of every rule: the defaults, and what is given instead.

    Raises:
        InputError: an unknown rule or action, or a fix for a rule that has none; all of them at once.
    """
    faults = []
    made = dict(DEFAULTS)
    for name, action in (given or {}).items():
        if name not in made:
            faults.append(f"`gate.actions` has no rule {name!r}; {meant(name)}")
        elif action not in get_args(Action):
            faults.append(f"`gate.actions.{name}` is {action!r}; it can be {', '.join(get_args(Action))}")
        elif action == "fix" and (name == DRIFT or BY_NAME[name].fix is None):
            faults.append(f"`gate.actions.{name}` cannot be fixed; it can be refuse, warn or off")
        else:
            made[name] = action  # pyright: ignore[reportArgumentType]
    if faults:
        raise InputError("\n".join(faults))
    return made
