"""A decision in sentences: the answer first, then why, then the evidence. Terms of our own are defined where they first appear."""

import dataclasses
from collections.abc import Sequence

from lora_select.records import CandidateScore, Constraints, DatasetProfile, Decision, Spectra
from lora_select.selection.calibration import LONG_RATE, Calibration, model_factor, reference_rate, shipped
from lora_select.selection.candidates import Candidate
from lora_select.selection.constraints import experts_left, rank_floor
from lora_select.selection.findings import Verdict, gain, shift
from lora_select.selection.learning_rate import displacement_ratio, learning_rate, lora_displacement, published_rate
from lora_select.selection.placement import target_parameters
from lora_select.selection.prediction import PREDICTED_GAIN
from lora_select.selection.race import Raced
from lora_select.selection.scoring import Scored
from lora_select.selection.shown import UNSHOWN, never_shown
from lora_select.spectral.statistics import CLEAR
from lora_select.variants import title

RUNNERS_UP = 3
PLACES = {"all-linear": "all linear layers", "mlp-only": "the feed-forward layers"}
TIED = "tied: "
"""Begins the sentences of candidates that nothing tells from the choice."""


def explain(decision: Decision) -> str:
    """Paragraphs of plain text: the answer, and below it the evidence."""
    return "\n".join(answer(decision)) + "\n\n" + _evidence(decision)


def brief(decision: Decision, place: str) -> str:
    """The answer and what decided it; `place` is what `lora-select explain` is given to tell the rest."""
    tied, refused = _others(decision)
    others = f"{len(tied) + len(refused)} other candidates: {len(tied)} as good, as far as is known, {len(refused)} not taken."
    rest = f"`lora-select explain {place}` says why, with all that was measured."
    return "\n".join([*answer(decision), "", _list("Why", _deciding(decision)), "", f"{others} {rest}"])


def _deciding(decision: Decision) -> list[str]:
    """Reasons that bear on the choice, less what the answer has said already."""
    said = [s for s in decision.reasons if s.startswith((EXPERTS, PREDICTED, UNSHOWN)) or s.endswith(RULED_OUT)]
    return [sentence for sentence in decision.reasons if sentence not in said and not _is_recorded(sentence)]


def _is_recorded(sentence: str) -> bool:
    """Whether a reason says what was measured and did not decide."""
    return sentence.startswith(SIGNAL) or sentence.endswith(NOT_USED)


def _others(decision: Decision) -> tuple[list[CandidateScore], list[CandidateScore]]:
    """Candidates that nothing tells from the choice, and those that were ruled out or beaten."""
    tied = [c for c in decision.candidates if c.rejected and all(s.startswith(TIED) for s in c.rejected)]
    return tied, [c for c in decision.candidates if c.rejected and c not in tied]


def _evidence(decision: Decision) -> str:
    """The reasons, what was measured beside, the runners-up, what was ruled out and by which sentence."""
    tied, refused = _others(decision)
    recorded = [sentence for sentence in decision.reasons if _is_recorded(sentence)]
    paragraphs = [
        _list("Why", [sentence for sentence in decision.reasons if sentence not in recorded]),
        _list("Recorded, and not used", [sentence.removesuffix(NOT_USED) for sentence in recorded]),
        _list(
            f"As good, as far as is known ({len(tied)})", [_line(c) for c in _best(tied)], more=len(tied) - RUNNERS_UP
        ),
        _list(f"Not taken ({len(refused)})", _grouped(refused)),
        f"Candidate {decision.choice_key} by the rule `{decision.rule}`, version {decision.rule_version}.",
    ]
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph)


def short(decision: Decision) -> str:
    """The choice as a person says it, such as `LoRA r 16`; a variant without a rank is its name alone."""
    choice = decision.choice
    return f"{title(choice.variant)} r {choice.r}" if choice.r else title(choice.variant)


def answer(decision: Decision) -> tuple[str, ...]:
    """What to train, what must not be overlooked, why in one sentence, what to expect, and for what the learning rate was never shown."""
    choice = decision.choice
    rank = f", r {choice.r}, alpha {choice.lora_alpha}" if choice.r else ""
    place = PLACES.get(choice.targets, choice.targets)
    head = f"{title(choice.variant)} on {place}{rank}, learning rate {choice.learning_rate:g}."
    experts, unshown = (
        tuple(sentence for sentence in decision.reasons if sentence.startswith(begins)) for begins in (EXPERTS, UNSHOWN)
    )
    return (head, *experts, _why(decision), *_expected(decision), *unshown)


def _why(decision: Decision) -> str:
    if decision.inputs.variant is not None:
        named = decision.inputs.learning_rate is not None
        return f"The config names this variant{' and its learning rate' if named else ''}."
    if decision.race_digest is not None:
        return (
            "Nothing that raced was clearly better, so this is the default."
            if decision.abstained
            else "It won the race."
        )
    if decision.abstained:
        return "The measurements do not separate the variants, so this is the default."
    return "The measurements set it apart from plain LoRA."


def _expected(decision: Decision) -> tuple[str, ...]:
    chosen = next((c for c in decision.candidates if c.key == decision.choice_key), None)
    predicted = next((e for e in chosen.evidence if e.name == PREDICTED_GAIN), None) if chosen else None
    if predicted is None or predicted.standard_error is None:
        return ()
    reach = 1.96 * predicted.standard_error
    interval = f"{predicted.value - reach:.2f} to {predicted.value + reach:.2f}"
    return (f"Expected: the held-out loss falls by about {predicted.value:.2f} {predicted.unit} (95 %: {interval}).",)


def _best(candidates: Sequence[CandidateScore]) -> list[CandidateScore]:
    return sorted(candidates, key=lambda c: (-c.score, c.key))[:RUNNERS_UP]


def _line(candidate: CandidateScore) -> str:
    return f"{candidate.key}: {candidate.rejected[0].removeprefix(TIED)}"


def _grouped(candidates: Sequence[CandidateScore]) -> list[str]:
    """One line a sentence, with the candidates it rules out."""
    groups: dict[str, list[str]] = {}
    for candidate in candidates:
        for sentence in candidate.rejected:
            groups.setdefault(sentence, []).append(candidate.key)
    return [f"{', '.join(keys)}: {sentence}" for sentence, keys in groups.items()]


def _list(title: str, lines: Sequence[str], more: int = 0) -> str:
    if not lines:
        return ""
    tail = [f"  - and {more} more"] if more > 0 else []
    return "\n".join([f"{title}:", *(f"  - {line}" for line in lines), *tail])


EXPERTS = "The experts are "
"""How the sentence begins that must not be overlooked."""
PREDICTED = "Predicted: "
RULED_OUT = " candidates were ruled out by constraints or by what the config names."
NOT_USED = " They are recorded and not used."
SIGNAL = "The gradient's signal"
"""How sentences begin, or end, that repeat the answer or decided nothing."""


def reasons(verdict: Verdict, profile: DatasetProfile, spectra: Spectra, inputs: Constraints) -> tuple[str, ...]:
    """Why this choice: the variant, how the race went, the learning rate, the expected gain; then what was measured."""
    return (
        *_about_experts(verdict, spectra, inputs),
        _about_variant(verdict, inputs),
        *_about_race(verdict),
        _about_learning_rate(verdict, inputs),
        *_about_unshown(verdict, profile, spectra, inputs),
        *_about_gain(verdict, profile),
        _about_rank(verdict.choice.candidate, profile, inputs),
        _about_signal(spectra),
        _about_shares(verdict),
        _about_candidates(verdict),
    )


def _about_variant(verdict: Verdict, inputs: Constraints) -> str:
    choice = verdict.choice
    key = choice.candidate.key
    named = [name for name in ("variant", "targets", "r") if getattr(inputs, name) is not None]
    named_text = f" The config names {', '.join(named)}." if named else ""
    if verdict.raced:
        return f"{key} is taken: {verdict.raced.why}.{named_text}"
    if inputs.variant is not None:
        return f"{key} is taken because the config names it. No statistic was asked.{named_text}"
    if verdict.winners:
        tie = f" It is the cheapest of {len(verdict.winners)} tied variants." if len(verdict.winners) > 1 else ""
        return (
            f"{key} is taken: its tangent share {_share(choice)} is above {verdict.share_factor:g} times LoRA's, beyond two "
            f"standard errors of both.{tie} Shares are heard because only {inputs.planned_steps} steps are planned.{named_text}"
        )
    if verdict.heard:
        cause = f"No variant's tangent share is above {verdict.share_factor:g} times LoRA's beyond two standard errors."
    elif verdict.claim:
        cause = f"{inputs.planned_steps} steps are planned, and tangent shares are heard up to {verdict.short_run_steps} only."
    else:
        cause = "Tangent shares are not heard: our sweep has too few settings to show that they predict anything."
    return (
        f"{key} is the default, because no measurement that may decide tells the candidates apart. {cause}{named_text}"
    )


def _about_race(verdict: Verdict) -> tuple[str, ...]:
    """How the race went, one sentence a candidate."""
    if verdict.race is None or verdict.raced is None:
        return ()
    race = verdict.race
    lines = [
        f"The race ran {len(race.probes)} trials of {' and '.join(map(str, race.rungs))} steps. It cost {100 * race.cost:.3g} % of the "
        f"planned training's tokens. Trials were compared on {len(race.labels)} training rows that none of them trained on.",
    ]
    for one in verdict.raced.standings:
        edge = (
            " That is an end of the learning rates that raced, so a better one may lie beyond." if one.at_edge else ""
        )
        lines.append(
            f"{one.key} raced to {one.loss:.3f} nats/token at learning rate {one.learning_rate:g} ({one.behind.value:+.3f} ± "
            f"{one.behind.error:.3f} to the best), and {one.forgetting:+.3f} on general text.{edge}"
        )
    return tuple(lines)


def _about_learning_rate(verdict: Verdict, inputs: Constraints) -> str:
    candidate = verdict.choice.candidate
    if inputs.learning_rate is not None:
        return f"Learning rate {inputs.learning_rate:g}, named by the config."
    if verdict.raced:
        factor = shift(verdict)
        moved = f", times {factor:g} for the step from a trial's length to the full one" if factor != 1 else ""
        return f"Learning rate {verdict.raced.learning_rate:g} of the race{moved}."
    rate = learning_rate(candidate, inputs.planned_steps)
    constants, published = shipped(), published_rate(candidate)
    home = reference_rate(inputs.planned_steps, constants, lora_displacement(candidate))
    if published is not None:
        return (
            f"Learning rate {rate:g}: {published:g}, {candidate.variant.rate_source} ({candidate.variant.name}), times "
            f"{home / LONG_RATE:.3g}, as LoRA's own rises in a run of {inputs.planned_steps} steps. No displacement was measured by "
            "which LoRA's could be transferred."
        )
    source = (
        f"all-linear LoRA's for {inputs.planned_steps} steps, from {constants.settings} settings of {constants.steps} steps and the public "
        f"sweep of 780{_model(lora_displacement(candidate), constants)}"
        if constants.settings
        else "the reference of all-linear LoRA"
    )
    if displacement_ratio(candidate) == 1:
        return f"Learning rate {rate:g}, {source}."
    return (
        f"Learning rate {rate:g}: {home:g}, {source}, over {displacement_ratio(candidate):.3g}"
        f"{_power(displacement_ratio(candidate), constants)}. That is how far a step displaces a layer's outputs, next to LoRA's step "
        "at the same rank."
    )


def _about_unshown(verdict: Verdict, profile: DatasetProfile, spectra: Spectra, inputs: Constraints) -> tuple[str, ...]:
    """Where the learning rate is a prediction, and for what it was never shown."""
    if inputs.learning_rate is not None or verdict.raced:
        return ()
    return never_shown(verdict.choice.candidate, profile, spectra, inputs, shipped())


def _model(displacement: float, constants: Calibration) -> str:
    factor = model_factor(displacement, constants)
    if f"{factor:.2g}" == "1":
        return ""
    return (
        f"; the former times {factor:.2g}, since a step of LoRA displaces this model's outputs by {displacement:.3g}, and those "
        f"models' by {constants.displacement:.3g}"
    )


def _power(displacement: float, constants: Calibration) -> str:
    power = constants.displacement_power
    return f", to the fitted power {power:g}" if displacement > 1 and power != 1 else ""


def _about_gain(verdict: Verdict, profile: DatasetProfile) -> tuple[str, ...]:
    predicted, constants = gain(verdict, profile), shipped()
    if predicted is None or predicted.standard_error is None:
        return ()
    head = f"{PREDICTED}the held-out loss falls by {predicted.value:.2f} ± {1.96 * predicted.standard_error:.2f} nats/token (95 %)."
    if predicted.source == "race":
        return (
            f"{head} That is what the choice's own trial of as many steps took off, widened for other rows and another seed.",
        )
    share = f"{100 * constants.gain_share:.0f} ± {100 * constants.gain_share_sd:.0f} % of the base loss"
    return (f"{head} Plain LoRA took {share} off in {constants.settings} settings of {constants.steps} steps.",)


def _about_rank(candidate: Candidate, profile: DatasetProfile, inputs: Constraints) -> str:
    floor = rank_floor(candidate, profile)
    r = candidate.variant.r
    bits = f"The labels hold at most {profile.information_bits:.3g} bits. The adapter holds about {candidate.capacity_bits:.3g}."
    if not r:
        return (
            f"{candidate.variant.name} has no rank, so no capacity floor was asked of {candidate.variant.size}. {bits}"
        )
    named = ", named by the config," if inputs.r is not None else ""
    side = "above" if r >= floor else "BELOW"
    return f"r {r}{named} is {side} the capacity floor {floor:.2g}, the rank that could store the labels. {bits}"


def _about_signal(spectra: Spectra) -> str:
    clear = sum(layer.signal_energy > CLEAR * layer.signal_energy_se for layer in spectra.layers)
    ranks = sorted(layer.signal_rank for layer in spectra.layers)
    measured = max(len(layer.heldout_values) for layer in spectra.layers)
    return (
        f"{SIGNAL}, what microbatches agree on, is above {CLEAR:g} standard errors in {clear} of {len(spectra.layers)} "
        f"layers. Its rank above noise is {ranks[len(ranks) // 2]} in the median layer and {ranks[-1]} in the largest; the pass "
        f"measures {measured} directions."
    )


def _about_shares(verdict: Verdict) -> str:
    place = verdict.choice.candidate
    here = [
        f"{item.candidate.variant.name} {_share(item)}"
        for item in verdict.scored
        if item.candidate.targets == place.targets and item.candidate.variant.r == place.variant.r and item.measured
    ]
    role = "" if verdict.heard else NOT_USED
    listed = ", ".join(here) or "not measured"
    return (
        f"Tangent shares, how much of the signal's energy an adapter can follow at its start, at {place.variant.size} on "
        f"{place.targets}: {listed}.{role}"
    )


def _about_experts(verdict: Verdict, spectra: Spectra, inputs: Constraints) -> tuple[str, ...]:
    if not spectra.fused_experts:
        return ()
    choice = verdict.choice.candidate
    count = sum(spectra.fused_experts.values())
    share = f", {count / spectra.model_parameters:.0%} of the model" if spectra.model_parameters else ""
    names = ", ".join(target_parameters(spectra.fused_experts))
    what = f"{count:,} parameters{share}. Each layer holds them in one tensor ({names})"
    if choice.experts:
        own = dataclasses.replace(choice, layers=()).num_parameters
        return (
            f"{EXPERTS}adapted too: {what}, and {own:,} trained parameters are theirs. They were not measured: their gradients "
            "come in one tensor, which the pass does not separate.",
        )
    left = experts_left(choice.variant, inputs) if spectra.expert_shapes else "this record does not hold their shapes"
    return (f"{EXPERTS}not adapted: {what}; {left}.",)


def _about_candidates(verdict: Verdict) -> str:
    ruled_out = sum(bool(item.faults) for item in verdict.scored)
    return f"{ruled_out} of {len(verdict.scored)}{RULED_OUT}"


def passed_over(item: Scored, verdict: Verdict) -> tuple[str, ...]:
    """Why an allowed candidate was not taken; nothing for the choice. Begins with `tied: ` for the tie set."""
    choice = verdict.choice
    if item is choice:
        return ()
    if verdict.raced:
        return (_lost(item, verdict.raced),)
    times = item.candidate.num_parameters / choice.candidate.num_parameters
    if verdict.winners and item not in verdict.winners:
        return (
            f"its tangent share {_share(item)} does not clear the bar that {choice.candidate.key} with {_share(choice)} "
            "does, or it stands at other targets or another rank, of which the claim says nothing",
        )
    why = "no statistic in force separates it from" if not verdict.winners else "within two standard errors of"
    head = f"{TIED}{why} {choice.candidate.key}"
    if times > 1:
        return (f"{head}, and it costs more: {times:.3g} times the parameters",)
    if times < 1:
        return (f"{head}; it has {times:.3g} times the parameters, but unsure the larger rank and all layers are kept",)
    return (f"{head} at the same number of parameters; the simpler initialisation is kept",)


def _lost(item: Scored, raced: Raced) -> str:
    """Why it was not taken after a race."""
    own = next((standing for standing in raced.standings if standing.key == item.candidate.key), None)
    if own is None:
        return f"{TIED}it did not reach the last rung of the race, so nothing says that it is better than {raced.key}"
    text = f"{own.behind.value:+.3f} ± {own.behind.error:.3f} nats/token to the best of the race"
    best = raced.standings[0].loss
    return f"{TIED}{text}, and {raced.key} is taken: {raced.why}" if own.ties(best) else text


def _share(item: Scored) -> str:
    return f"{item.score:.3f} ± {item.error:.3f}" if item.measured else "not measured"
