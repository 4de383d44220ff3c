"""One loaded base and an adapter's updates: second moments, the search for the strength, losses of every arm."""

import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

from lora_select.data.labels.tokens import TokenRow
from lora_select.errors import InputError
from lora_select.evaluation.model_losses import label_counts
from lora_select.progress import Report as Progress
from lora_select.records import LayerRetention, RetentionEvidence, Tolerance
from lora_select.retention import filter as filtering
from lora_select.retention import form_losses, forms, path
from lora_select.retention.decide import FILTER, RAW, SCALE
from lora_select.retention.filter import Pair, Spread
from lora_select.retention.form_losses import Judged
from lora_select.retention.forms import Form, Update
from lora_select.retention.moments import Moments, stream
from lora_select.retention.references import ReferenceSet
from lora_select.retention.settings import RetentionSettings

SEARCH = "search"


@final
class Bench:
    """One loaded base and the adapter's updates: what is measured on them, and how many tokens went forward for it, by part of the work."""

    def __init__(self, model: Any, form: Form, pad_id: int, settings: RetentionSettings, progress: Progress) -> None:
        self.model, self.form, self.pad_id, self.settings, self.progress = model, form, pad_id, settings, progress
        self.forward: Counter[str] = Counter()
        modules = forms.linear_modules(model)
        self.modules = {name: modules[name] for name in form.updates}

    def moments(
        self, rows: Sequence[TokenRow], sets: Sequence[ReferenceSet], earlier: Sequence[Moments] = ()
    ) -> tuple[dict[str, Pair], dict[str, list[str]], tuple[str, ...], Moments]:
        """Pairs by owner, layers of each owner, notes, and the task's sums, whose `unseen` names every layer without a pair."""
        task = self._stream(until(rows, self.settings.task_tokens), "task rows")
        given = [self._stream(one.give, f"reference text: {one.name}") for one in sets if one.give]
        given += earlier
        pairs, notes, left = filtering.pairs(task, given, ridge=self.settings.ridge, prior=self.settings.prior)
        layers: dict[str, list[str]] = {}
        for name, owner in task.owner.items():
            if owner in pairs:
                layers.setdefault(owner, []).append(name)
            else:
                task.unseen[name] = left[owner] if owner in left else task.unseen[owner]
        return pairs, layers, notes, task

    def _stream(self, rows: Sequence[TokenRow], what: str) -> Moments:
        self.forward["moments"] += _tokens(rows)
        return stream(
            self.model, self.modules, rows, self.pad_id,
            exact_width=self.settings.exact_width, columns=self.settings.sketch_columns,
            progress=lambda done, total: self.progress(done, total, f"second moments of {what}"),
        )  # fmt: skip

    def losses(self, updates: Mapping[str, Update], rows: Sequence[TokenRow], part: str) -> tuple[float, ...]:
        """Summed loss of each row in nats with the updates on the base."""
        self.forward[part] += _tokens(rows)
        return form_losses.losses(self.model, updates, rows, self.pad_id)

    def judge(
        self, arms: form_losses.Arms, rows: Sequence[TokenRow], part: str, name: str, *, divergence: bool
    ) -> Judged:
        """Base and arms on the same rows of the reference set `name`."""
        self.forward[part] += (1 + len(arms)) * _tokens(rows)
        return form_losses.judge(
            self.model, arms, rows, self.pad_id, divergence=divergence,
            progress=lambda done, total: self.progress(done, total, f"{part}: {name}"),
        )  # fmt: skip

    def exact(
        self, arms: form_losses.Arms, rows: Sequence[TokenRow], tokenizer: Any, name: str
    ) -> dict[str, tuple[float, ...]]:
        """Whether answers of base and arms are exact, where rows of the set `name` can be checked."""
        self.progress(0, 1, f"answers: {name}")
        found = form_losses.exact(self.model, arms, rows, tokenizer)
        self.forward["judge"] += len(found) * _tokens(rows[: form_losses.ASKED])
        return found

    def search(
        self,
        pairs: Mapping[str, Pair],
        layers: Mapping[str, list[str]],
        spreads: Mapping[str, Spread],
        rows: Sequence[TokenRow],
        tolerance: Tolerance,
    ) -> tuple[RetentionEvidence, dict[str, Mapping[str, Update]], dict[str, forms.Written]]:
        """Both paths, and the arms that stay within the tolerance. `spreads` are those of the updates as trained."""
        updates = self.form.updates
        start = path.Losses(self.losses(updates, rows, SEARCH), label_counts(rows))

        def evaluate(make: Callable[[float], Mapping[str, Update]], what: str) -> Callable[[float], tuple[float, ...]]:
            def at(strength: float) -> tuple[float, ...]:
                self.progress(0, 1, f"{what} at {strength:.3g}")
                return self.losses(make(strength), rows, SEARCH)

            return at

        def scale(strength: float) -> Mapping[str, Update]:
            return scaled(updates, strength)

        scales = path.morozov(start, evaluate(scale, SCALE), tolerance)
        shortened = path.shortened(scales)
        shorter = scale(shortened)

        def filtered(strength: float) -> Mapping[str, Update]:
            return filter_updates(shorter, pairs, layers, strength)

        filters = path.morozov(start, evaluate(filtered, FILTER), tolerance)
        arms: dict[str, Mapping[str, Update]] = {RAW: updates}
        forms_of: dict[str, forms.Written] = {}
        rises: dict[str, float] = {}
        refused: dict[str, str] = {}
        for arm, points, make in ((SCALE, scales, scale), (FILTER, filters, filtered)):
            if (point := path.chosen(points)) is None:
                continue
            try:
                arms[arm], forms_of[arm] = forms.loadable(self.form, make(point.strength), self.settings.max_error)
            except InputError as error:
                refused[arm] = str(error)
                continue
            if forms_of[arm].method == "truncated":
                rises[arm], _ = path.paired(start.losses, self.losses(arms[arm], rows, SEARCH), start.labels)
        evidence = RetentionEvidence(
            tolerance=tolerance,
            raw_loss=start.mean,
            selection_rows=len(rows),
            kappa=filtering.joined(spreads).kappa,
            scale_path=scales,
            filter_path=filters,
            shortened=shortened,
            written_rise=rises,
            refused=refused,
            references={},
        )
        return evidence, arms, forms_of


def spreads(
    pairs: Mapping[str, Pair], layers: Mapping[str, list[str]], updates: Mapping[str, Update]
) -> dict[str, Spread]:
    """The traces that kappa is made of, by layer."""
    return {
        name: filtering.spread(updates[name].a, updates[name].b, pairs[owner])
        for owner, names in layers.items()
        for name in names
    }


def moved_of_earlier(arms: form_losses.Arms, earlier: Sequence[Moments]) -> dict[str, float] | None:
    """What each arm adds to the layers' outputs on the inputs of earlier tasks, squared, as a share of what the update as trained adds; None without such."""
    if not earlier:
        return None
    sums = functools.reduce(Moments.joined, earlier)
    seen = [name for name in arms[RAW] if name in sums.owner]
    total = {
        arm: sum(filtering.moved(updates[name].a, updates[name].b, sums.of(name)) for name in seen)
        for arm, updates in arms.items()
    }
    return {arm: _share(part, total[RAW]) for arm, part in total.items()}


def kept_of_layers(
    before: Mapping[str, Spread], after: Mapping[str, Spread], sums: Moments
) -> tuple[LayerRetention, ...]:
    """What was kept of each layer's update."""
    return tuple(
        LayerRetention(
            name=name,
            tokens=sums.of(name).tokens,
            kappa=before[name].kappa,
            task_kept=_share(after[name].task, before[name].task),
            reference_kept=_share(after[name].reference, before[name].reference),
        )
        for name in sorted(before)
    )


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 1.0


def scaled(updates: Mapping[str, Update], strength: float) -> dict[str, Update]:
    """D / (1 + lambda) in every layer: the filter with Zt = Zr."""
    return {name: Update(update.a / (1 + strength), update.b) for name, update in updates.items()}


def filter_updates(
    updates: Mapping[str, Update], pairs: Mapping[str, Pair], layers: Mapping[str, list[str]], strength: float
) -> dict[str, Update]:
    """Every layer's update filtered; one factorisation serves all layers of an input. Layers without moments are left alone."""
    import torch

    made = dict(updates)
    for owner, names in layers.items():
        stacked = torch.cat([updates[name].a for name in names])
        kept = filtering.filtered(stacked, pairs[owner], strength).to(stacked).split([len(updates[n].a) for n in names])
        made |= {name: Update(part, updates[name].b) for name, part in zip(names, kept, strict=True)}
    return made


def _tokens(rows: Sequence[TokenRow]) -> int:
    return sum(len(row.input_ids) for row in rows)


def until(rows: Sequence[TokenRow], tokens: int) -> list[TokenRow]:
    """The first rows that together hold `tokens` tokens, or all."""
    found: list[TokenRow] = []
    held = 0
    for row in rows:
        if held >= tokens:
            break
        found.append(row)
        held += len(row.input_ids)
    return found
