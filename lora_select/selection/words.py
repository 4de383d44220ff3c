"""From a verdict to its record: the chosen adapter, the evidence of every candidate, and the reasons as sentences."""

import dataclasses
from dataclasses import dataclass
from typing import Any, final

from lora_select.records import AdapterSpec, CandidateScore, Constraints, DatasetProfile, Evidence, Race, Spectra
from lora_select.selection.calibration import LONG_RATE, Calibration, model_factor, rate_shift, reference_rate, shipped
from lora_select.selection.candidates import Candidate
from lora_select.selection.constraints import rank_floor
from lora_select.selection.learning_rate import displacement_ratio, learning_rate, lora_displacement, published_rate
from lora_select.selection.placement import target_modules
from lora_select.selection.prediction import predicted_gain, raced_gain
from lora_select.selection.scoring import Scored
from lora_select.selection.standing import Raced

CLEAR = 2.0


@final
@dataclass(frozen=True)
class Verdict:
    """What the rule found: the choice, all candidates, those that cleared LoRA, and whether the claim was heard."""

    choice: Scored
    scored: tuple[Scored, ...]
    winners: tuple[Scored, ...]
    abstained: bool
    claim: bool
    heard: bool
    short_run_steps: int
    share_factor: float
    raced: Raced | None = None
    race: Race | None = None


def spec(candidate: Candidate, inputs: Constraints) -> AdapterSpec:
    """What the worker builds."""
    variant = candidate.variant
    return AdapterSpec(
        variant=variant.name,
        targets=candidate.targets,
        target_modules=candidate.target_modules,
        r=variant.r,
        lora_alpha=variant.lora_alpha,
        scale=variant.scale,
        init=variant.init,
        learning_rate=inputs.learning_rate or learning_rate(candidate, inputs.planned_steps),
        peft_class=variant.peft_class,
        peft_arguments=_peft_arguments(candidate),
        optimizer=variant.optimizer,
        num_parameters=candidate.num_parameters,
    )


def spec_of(candidate: Candidate, verdict: Verdict, inputs: Constraints) -> AdapterSpec:
    """The adapter at the rate that won the race, moved from the rung's length to the full one; at the predicted one without."""
    made = spec(candidate, inputs)
    own = next((s for s in verdict.raced.standings if s.key == candidate.key), None) if verdict.raced else None
    if own is None or inputs.learning_rate is not None:
        return made
    return dataclasses.replace(made, learning_rate=float(f"{own.learning_rate * _shift(verdict):.1e}"))


def _shift(verdict: Verdict) -> float:
    race = verdict.race
    return rate_shift(race.rungs[-1] / race.planned_steps, shipped()) if race else 1.0


def _peft_arguments(candidate: Candidate) -> dict[str, Any]:
    """Everything PEFT's config is built from."""
    names = [layer.name for layer in candidate.layers]
    placed = {"target_modules": target_modules(names, candidate.others), "task_type": "CAUSAL_LM"}
    return candidate.variant.peft_arguments() | placed


def record(item: Scored, verdict: Verdict, profile: DatasetProfile, inputs: Constraints) -> CandidateScore:
    """A candidate with its evidence; `rejected` is empty for the choice alone, and begins with `tied:` for the tie set."""
    return CandidateScore(
        key=item.candidate.key,
        spec=spec_of(item.candidate, verdict, inputs),
        evidence=(*_evidence(item, profile), *_raced_evidence(item, verdict), *_prediction(item, verdict, profile)),
        score=item.score,
        score_se=item.error,
        rejected=item.faults or _passed_over(item, verdict),
    )


def reasons(verdict: Verdict, profile: DatasetProfile, spectra: Spectra, inputs: Constraints) -> tuple[str, ...]:
    """Why this choice, in sentences with numbers."""
    return (
        *_about_experts(spectra),
        _about_candidates(verdict),
        _about_variant(verdict, inputs),
        *_about_race(verdict),
        _about_signal(spectra),
        _about_shares(verdict),
        _about_rank(verdict.choice.candidate, profile, inputs),
        _about_rate(verdict, inputs),
        *_about_gain(verdict, profile),
    )


def _evidence(item: Scored, profile: DatasetProfile) -> tuple[Evidence, ...]:
    candidate = item.candidate
    share = (
        [Evidence("tangent_share", item.score, item.error, "share of signal energy", "analyze")]
        if item.measured
        else []
    )
    capacity = candidate.capacity_bits / profile.information_bits if profile.information_bits > 0 else 0.0
    return (
        *share,
        Evidence("displacement_ratio", displacement_ratio(candidate), None, "of LoRA at the same rank", "analyze"),
        Evidence("num_parameters", float(candidate.num_parameters), None, "parameters", "select"),
        Evidence("capacity_ratio", capacity, None, "adapter bits per bit of labels", "profile"),
        Evidence("rank_floor", rank_floor(candidate, profile), None, "rank", "profile"),
    )


def _raced_evidence(item: Scored, verdict: Verdict) -> tuple[Evidence, ...]:
    """What the race measured at the candidate's best rate, at the length of the last rung."""
    found = [s for s in verdict.raced.standings if s.key == item.candidate.key] if verdict.raced else []
    return tuple(
        one
        for standing in found
        for one in (
            Evidence("race_rate", standing.learning_rate, None, "learning rate", "race"),
            Evidence("race_loss", standing.loss, None, "nats/token", "race"),
            Evidence("race_behind", standing.behind.value, standing.behind.error, "nats/token behind the best", "race"),
            Evidence("race_forgetting", standing.forgetting, None, "nats/token of general text", "race"),
        )
    )


def _prediction(item: Scored, verdict: Verdict, profile: DatasetProfile) -> tuple[Evidence, ...]:
    """The predicted gain, for the choice alone: no statistic in force tells the candidates apart."""
    made = _gain(verdict, profile) if item is verdict.choice else None
    return (made,) if made else ()


def _gain(verdict: Verdict, profile: DatasetProfile) -> Evidence | None:
    """As the choice's own probe has it, if that was as long as the training; else as other settings came out."""
    raced, race = verdict.raced, verdict.race
    own = raced_gain(profile.base_loss, race, raced.key, raced.learning_rate, shipped()) if raced and race else None
    return own or predicted_gain(profile.base_loss, shipped())


def _about_gain(verdict: Verdict, profile: DatasetProfile) -> tuple[str, ...]:
    made, constants = _gain(verdict, profile), shipped()
    if made is None or made.standard_error is None:
        return ()
    head = (
        f"Predicted: held-out loss falls by {made.value:.2f} ± {1.96 * made.standard_error:.2f} nats/token (95 %), as "
    )
    if made.source == "race":
        return (f"{head}it did in the choice's own probe of as many steps, for other rows and another seed.",)
    share = f"{100 * constants.gain_share:.0f} ± {100 * constants.gain_share_sd:.0f} % of the base loss"
    return (f"{head}plain LoRA did in {constants.settings} settings of {constants.steps} steps ({share}).",)


def _about_race(verdict: Verdict) -> tuple[str, ...]:
    """How the race went, one sentence a candidate."""
    if verdict.race is None or verdict.raced is None:
        return ()
    race = verdict.race
    lines = [
        f"Race: {len(race.probes)} probes of {' and '.join(map(str, race.rungs))} steps, {100 * race.cost:.3g} % of the planned training's "
        f"tokens, compared on {len(race.labels)} training rows that no probe trained on.",
    ]
    for one in verdict.raced.standings:
        edge = "; an end of the rates that raced, a better one may lie beyond" if one.at_edge else ""
        lines.append(
            f"{one.key} raced to {one.loss:.3f} nats/token at {one.learning_rate:g} ({one.behind.value:+.3f} ± {one.behind.error:.3f} to the "
            f"best), {one.forgetting:+.3f} on general text{edge}."
        )
    return tuple(lines)


def _passed_over(item: Scored, verdict: Verdict) -> tuple[str, ...]:
    """Why an allowed candidate was not taken; nothing for the choice."""
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
    head = f"tied: {why} {choice.candidate.key}"
    if times > 1:
        return (f"{head}, and it costs more: {times:.3g} times the parameters",)
    if times < 1:
        return (f"{head}; it has {times:.3g} times the parameters, but unsure the larger rank and all layers are kept",)
    return (f"{head} at the same number of parameters; the simpler start is kept",)


def _lost(item: Scored, raced: Raced) -> str:
    """Why it was not taken after a race."""
    own = next((standing for standing in raced.standings if standing.key == item.candidate.key), None)
    if own is None:
        return f"tied: it did not reach the last rung of the race, so nothing says that it is better than {raced.key}"
    text = f"{own.behind.value:+.3f} ± {own.behind.error:.3f} nats/token to the best of the race"
    best = raced.standings[0].loss
    return f"tied: {text}, and {raced.key} is taken: {raced.why}" if own.ties(best) else text


def _about_experts(spectra: Spectra) -> tuple[str, ...]:
    if not spectra.fused_experts:
        return ()
    count = sum(spectra.fused_experts.values())
    share = f", {count / spectra.model_parameters:.0%} of the model" if spectra.model_parameters else ""
    names = sorted({name.rpartition(".")[2] for name in spectra.fused_experts})
    return (
        f"The experts are not adapted: {count:,} parameters{share}. Each layer holds them in one tensor ({', '.join(names)}), whose "
        "gradients the pass does not separate.",
    )


def _about_candidates(verdict: Verdict) -> str:
    ruled_out = sum(bool(item.faults) for item in verdict.scored)
    return f"{len(verdict.scored)} candidates, {ruled_out} ruled out by constraints or by what the config names."


def _about_variant(verdict: Verdict, inputs: Constraints) -> str:
    choice = verdict.choice
    named = [name for name in ("variant", "targets", "r") if getattr(inputs, name) is not None]
    named_text = f" The config names {', '.join(named)}." if named else ""
    if verdict.raced:
        return f"{choice.candidate.key}: {verdict.raced.why}.{named_text}"
    if inputs.variant is not None:
        return f"{choice.candidate.key} because the config names it; no statistic was asked.{named_text}"
    if verdict.winners:
        tie = f", the cheapest of {len(verdict.winners)} tied" if len(verdict.winners) > 1 else ""
        return (
            f"{choice.candidate.key}: its tangent share {_share(choice)} is above {verdict.share_factor:g} times LoRA's beyond "
            f"two standard errors of both{tie}, and at most {verdict.short_run_steps} steps are planned "
            f"({inputs.planned_steps}).{named_text}"
        )
    if verdict.heard:
        cause = f"no variant's tangent share is above {verdict.share_factor:g} times LoRA's beyond two standard errors"
    elif verdict.claim:
        cause = f"{inputs.planned_steps} steps are planned, and tangent shares are heard up to {verdict.short_run_steps} only"
    else:
        cause = "the claim that tangent shares predict short runs is off: our sweep has too few settings that could bear it out"
    return (
        f"No evidence that may decide tells the candidates apart ({cause}), so the rule abstains to the default, "
        f"{choice.candidate.key}.{named_text}"
    )


def _about_signal(spectra: Spectra) -> str:
    clear = sum(layer.signal_energy > CLEAR * layer.signal_energy_se for layer in spectra.layers)
    ranks = sorted(layer.signal_rank for layer in spectra.layers)
    measured = max(len(layer.heldout_values) for layer in spectra.layers)
    return (
        f"The gradient's signal is above {CLEAR:g} standard errors in {clear} of {len(spectra.layers)} layers; its rank above "
        f"noise is {ranks[len(ranks) // 2]} in the median layer and {ranks[-1]} in the largest (the pass measures "
        f"{measured} directions)."
    )


def _about_shares(verdict: Verdict) -> str:
    place = verdict.choice.candidate
    here = [
        f"{item.candidate.variant.name} {_share(item)}"
        for item in verdict.scored
        if item.candidate.targets == place.targets and item.candidate.variant.r == place.variant.r and item.measured
    ]
    role = "" if verdict.heard else ", recorded and not used"
    listed = ", ".join(here) or "not measured"
    return f"Tangent shares of the signal at {place.variant.size} on {place.targets}{role}: {listed}."


def _about_rank(candidate: Candidate, profile: DatasetProfile, inputs: Constraints) -> str:
    floor = rank_floor(candidate, profile)
    r = candidate.variant.r
    bits = (
        f"the labels hold at most {profile.information_bits:.3g} bits, the adapter about {candidate.capacity_bits:.3g}."
    )
    if not r:
        return (
            f"{candidate.variant.name} has no rank, and no capacity floor was asked of {candidate.variant.size}: {bits}"
        )
    named = ", named by the config" if inputs.r is not None else ""
    verdict = "above" if r >= floor else "BELOW"
    return f"r {r}{named} is {verdict} the capacity floor {floor:.2g}: {bits}"


def _about_rate(verdict: Verdict, inputs: Constraints) -> str:
    candidate = verdict.choice.candidate
    if inputs.learning_rate is not None:
        return f"Learning rate {inputs.learning_rate:g}, named by the config."
    if verdict.raced:
        shift = _shift(verdict)
        moved = f", times {shift:g} from the rung's length to the full one" if shift != 1 else ""
        return f"Learning rate {verdict.raced.learning_rate:g} of the race{moved}."
    rate = learning_rate(candidate, inputs.planned_steps)
    constants, published = shipped(), published_rate(candidate)
    home = reference_rate(inputs.planned_steps, constants, lora_displacement(candidate))
    if published is not None:
        return (
            f"Learning rate {rate:g}: {published:g}, {candidate.variant.rate_source} ({candidate.variant.name}), times "
            f"{home / LONG_RATE:.3g}, as LoRA's own rises in a run of {inputs.planned_steps} steps; no displacement was measured by "
            "which LoRA's could be transferred."
        )
    source = (
        f"all-linear LoRA's for {inputs.planned_steps} steps (from {constants.settings} settings of {constants.steps} steps and the public "
        f"sweep of 780{_model(lora_displacement(candidate), constants)})"
        if constants.settings
        else "the reference of all-linear LoRA"
    )
    if displacement_ratio(candidate) == 1:
        return f"Learning rate {rate:g}, {source}."
    return (
        f"Learning rate {rate:g}: {home:g}, {source}, over the displacement of one step relative to LoRA's at the same rank, "
        f"{displacement_ratio(candidate):.3g}{_power(displacement_ratio(candidate), constants)}."
    )


def _model(displacement: float, constants: Calibration) -> str:
    factor = model_factor(displacement, constants)
    if f"{factor:.2g}" == "1":
        return ""
    return f"; the former times {factor:.2g}, since LoRA's displacement on this model is {displacement:.3g} and was {constants.displacement:.3g} there"


def _power(displacement: float, constants: Calibration) -> str:
    power = constants.displacement_power
    return f", to the fitted power {power:g}" if displacement > 1 and power != 1 else ""


def _share(item: Scored) -> str:
    return f"{item.score:.3f} ± {item.error:.3f}" if item.measured else "not measured"
