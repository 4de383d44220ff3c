"""What came out, in the sentences of every place that says it: the terminal, a notebook, the report, MLflow's page, the card."""

from lora_select.audit.alias.promotion import DEFERRED
from lora_select.audit.alias.standing import AWAITING, REJECTED
from lora_select.evaluation import wording
from lora_select.evaluation.few_shot import all_right, at_least
from lora_select.records import Adapter, Decision, Evaluation, FewShot, MetricComparison, Promotion
from lora_select.selection.explanation import short
from lora_select.selection.prediction import outcome

ENOUGH = "FEW-SHOT ALREADY DOES IT"
REACHED = {"loss": "loss", "valid_json": "JSON"}
"""Names of metrics where many stand in one line."""


def verdict(
    decision: Decision, evaluation: Evaluation, promotion: Promotion | None = None, adapter: Adapter | None = None
) -> str:
    """The result in one paragraph: its :func:`sentences`."""
    return " ".join(sentences(decision, evaluation, promotion, adapter))


def sentences(
    decision: Decision, evaluation: Evaluation, promotion: Promotion | None = None, adapter: Adapter | None = None
) -> tuple[str, ...]:
    """The result, bad news in capitals; the first sentence is the answer.

    What the held-out loss did, how the adapter stands to each rival, exactly right answers, loss on other text where it changed, what is
    left in fewer bits, the role in the registry, and whether the prediction held. Each interval is of 95 %.
    """
    version = evaluation.champion_version
    said = [effect(short(decision), evaluation.metrics["loss"])]
    said += [
        examples(evaluation) if name == wording.FEW_SHOT else _standing(wording.rival(name, version), pairs["loss"])
        for name, pairs in sorted(evaluation.against.items())
    ]
    if match := evaluation.metrics.get("exact_match"):
        said.append(_matched(match))
    if evaluation.forgetting.significant:
        said.append(_forgot(evaluation.forgetting))
    said += filter(None, [in_fewer_bits(evaluation)])
    if promotion is not None:
        said.append(role(promotion))
    if made := outcome(decision, evaluation, adapter):
        said.append(f"What was predicted: {made}.")
    return tuple(said)


def effect(who: str, loss: MetricComparison) -> str:
    """What an adapter did to the held-out loss."""
    words = {"better": f"{who} lowers held-out loss from", "worse": f"{who} RAISES held-out loss from"}
    start = words.get(change(loss), f"{who} changes held-out loss by no more than noise, from")
    return (
        f"{start} {loss.base:.3f} to {loss.adapted:.3f} {loss.unit} (95 % interval of the change {interval(loss)}, "
        f"{loss.rows} rows)."
    )


def before_training(made: FewShot) -> tuple[str, ...]:
    """What examples in the prompt reach, and what that says of a training; the reason where none could be laid there.

    How much a training would reach is not told: nothing forecasts it well enough.
    """
    if not made.examples:
        return made.notes
    pairs = wording.in_order(made.metrics)
    loss, match = pairs["loss"], pairs.get("exact_match")
    reached = ", ".join(f"{REACHED.get(name, wording.metric(name))} {_reached(pair)}" for name, pair in pairs.items())
    head = f"{made.examples} example{'s' * (made.examples > 1)} in the prompt: {reached}."
    if made.enough and match:
        share = f"95 % interval of the share {value(at_least(match.rows), match.unit)} to {value(1.0, match.unit)}"
        return (head, f"{ENOUGH}: all {match.rows} answers are exactly right ({share}).")
    if change(loss) != "better":
        return (head, f"Examples do not lower the loss; training has to beat {min(loss.base, loss.adapted):.3f}.")
    return (head, f"Examples already reach {loss.adapted:.3f} {loss.unit}; training has to beat that.")


def _reached(pair: MetricComparison) -> str:
    rows = f" of {pair.rows}" if pair.unit == wording.SHARE_UNIT else ""
    return f"{value(pair.base, pair.unit)} -> {value(pair.adapted, pair.unit)}{rows}"


def few_shot_does_it(evaluation: Evaluation) -> bool:
    """Whether examples in the prompt do what the adapter does: its gain in loss over them is inside noise, or they leave no answer wrong."""
    pairs = evaluation.against.get(wording.FEW_SHOT)
    if pairs is None:
        return False
    match = pairs.get("exact_match")
    return change(pairs["loss"]) != "better" or (match is not None and all_right(match.base, match.rows))


def examples(evaluation: Evaluation) -> str:
    """How the adapter stands to the untrained model with examples in its prompt, where that was measured; else nothing."""
    pairs = evaluation.against.get(wording.FEW_SHOT)
    if pairs is None:
        return ""
    said = _standing(wording.rival(wording.FEW_SHOT), pairs["loss"])
    if match := pairs.get("exact_match"):
        shares = f"{value(match.base, match.unit)} there, {value(match.adapted, match.unit)} with the adapter"
        said += f" Exactly right answers of {match.rows}: {shares}{'' if match.significant else ', which cannot be told apart'}."
    return f"{ENOUGH}. {said}" if few_shot_does_it(evaluation) else said


def in_fewer_bits(evaluation: Evaluation) -> str:
    """What the merged model keeps of the gain in each form, in one sentence; empty where none was measured or the gain itself is noise."""
    left = [f"{wording.left(one)} as {one.form}" for one in evaluation.stored if one.left is not None]
    return f"Merged and stored in fewer bits, it keeps of its gain in loss: {', '.join(left)}." if left else ""


def role(promotion: Promotion) -> str:
    """What the registry was told of the adapter, in one sentence."""
    model, version = promotion.model_name, promotion.version
    who = f"version {version} of {model}" if version else f"a version of {model} without a number"
    return {
        DEFERRED: f"Its promotion in {model} is deferred: the same command promotes it later.",
        AWAITING: f"It is {who} and waits for a person's approval.",
        REJECTED: f"It is {who}, which a person rejected.",
    }.get(promotion.alias, f"It is {promotion.alias} of {model}, version {version}.")


def _standing(rival: str, loss: MetricComparison) -> str:
    known = change(loss)
    if known not in ("better", "worse"):
        return f"It cannot be told apart from {rival} ({interval(loss)})."
    return f"It is {'better' if known == 'better' else 'WORSE'} than {rival} by {abs(loss.difference):.3f} ({interval(loss)})."


def _matched(match: MetricComparison) -> str:
    if match.difference == 0:
        return f"Exactly right answers stay at {value(match.base, match.unit)} of {match.rows} rows."
    shares = f"{value(match.base, match.unit)} to {value(match.adapted, match.unit)} of {match.rows} rows"
    if not match.significant:
        return f"Exactly right answers: {shares}, which cannot be told from noise."
    return f"Exactly right answers {'rise' if match.difference > 0 else 'FALL'} from {shares}."


def _forgot(loss: MetricComparison) -> str:
    direction = "RISES" if loss.difference > 0 else "falls"
    return (
        f"On general reference text its loss {direction} by {abs(loss.difference):.3f} {loss.unit} ({interval(loss)})."
    )


def change(item: MetricComparison) -> str:
    """`better`, `worse` or `not distinguishable`."""
    if not item.significant:
        return "not distinguishable"
    return "better" if (item.difference < 0) == (item.better == "lower") else "worse"


def title(name: str, item: MetricComparison) -> str:
    """A metric for a table's first column, with its unit; shares of rows are in percent and need none."""
    return wording.metric(name) if item.unit == wording.SHARE_UNIT else f"{wording.metric(name)} ({item.unit})"


def value(amount: float, unit: str) -> str:
    """Three decimals; shares of rows in percent."""
    return f"{100 * amount:.1f} %" if unit == wording.SHARE_UNIT else f"{amount:.3f}"


def delta(amount: float, unit: str) -> str:
    """A change, with its sign; of shares in percentage points."""
    return f"{100 * amount:+.1f} pp" if unit == wording.SHARE_UNIT else f"{amount:+.3f}"


def changed(item: MetricComparison) -> str:
    """A change with its interval, such as `-0.500 [-0.600 to -0.400]`; the unit is the reader's to name."""
    return f"{delta(item.difference, item.unit)} [{interval(item)}]"


def interval(item: MetricComparison) -> str:
    """The interval with signs, in the units of :func:`delta`."""
    low, high = (delta(bound, item.unit) for bound in item.interval)
    return f"{low.removesuffix(' pp')} to {high}"
