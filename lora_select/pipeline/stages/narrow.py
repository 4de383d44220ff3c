"""The least rank that keeps what was trained: a LoRA cut in the metric of its task's inputs, at a rank chosen on rows kept from training.

D_k is the best approximation of D = B A of rank k in ||. Zt^{1/2}||, Zt the second moment of the layer's inputs on task rows (Eckart and Young 1936
for D Zt^{1/2}): U_k U_k^T D with the leading left singular vectors of D Zt^{1/2}. No inverse of Zt is needed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, final

from lora_select import models
from lora_select.audit import run_entries
from lora_select.errors import InputError
from lora_select.evaluation.model_losses import label_counts
from lora_select.export.plain_lora import write_plain
from lora_select.pipeline.stages.train import task_rows
from lora_select.records import DatasetProfile, TrainingPlan, read
from lora_select.retention import form_losses, forms, path
from lora_select.retention.bench import until
from lora_select.retention.forms import Update
from lora_select.retention.moments import InputSums, stream
from lora_select.retention.settings import RetentionSettings

if TYPE_CHECKING:
    from torch import Tensor


@final
@dataclass(frozen=True)
class Tried:
    """A rank on the rows kept from training: rise of the loss in nats per label token with its paired standard error, and what was allowed."""

    rank: int
    rise: float
    standard_error: float
    limit: float

    @property
    def within(self) -> bool:
        """Whether the rise and one standard error are within what was allowed."""
        return self.rise + self.standard_error <= self.limit


@final
@dataclass(frozen=True)
class Narrowed:
    """The chosen rank, that of the adapter, every rank that was tried, and how many rows told."""

    rank: int
    full: int
    tried: tuple[Tried, ...]
    rows: int

    def __str__(self) -> str:
        lines = [
            f"rank {one.rank}: {one.rise:+.4f} ± {one.standard_error:.4f} nats/token on {self.rows} rows kept from training, "
            f"{one.limit:.4f} allowed"
            for one in self.tried
        ]
        found = f"rank {self.rank} of {self.full}" if self.rank < self.full else f"no rank below {self.full} is enough"
        return "\n".join([found, *lines])


def narrow(
    run: Path, out: Path, *, base: str | None = None, progress: Callable[[str], None] = lambda _: None
) -> Narrowed:
    """Write the run's adapter at the least of the halves of its rank whose loss rises by at most 1 %, one standard error included.

    Args:
        run: a run's folder, which holds the rows that were kept from training.
        out: a new PEFT folder.
        base: where the base model is, when the adapter does not say.
        progress: told what is read.

    Raises:
        InputError: no run's folder, an adapter that is no LoRA, or too few rows kept from training.
    """
    places = run_entries.stages(run)
    if not {"profile", "plan"} <= set(places):
        raise InputError(
            f"`--rank least` chooses on the rows that a run kept from training, and {run} is no run's folder; name a rank instead"
        )
    profile, plan = read(DatasetProfile, run / "profile.json"), read(TrainingPlan, run / "plan.json")
    rows = task_rows(places["profile"].folder, profile, plan)
    folder = run_entries.adapter_folder(run)
    source = base or forms.config_of(folder).get("base_model_name_or_path")
    if not source:
        raise InputError(f"{folder} does not name its base model; name it with --base")
    where = models.resolve(source).path
    model, pad_id = models.load_model(where), models.pad_id(models.load_tokenizer(where))
    form = forms.read(folder, model, load_base=lambda: models.load_model(where))
    if form.kind == forms.DENSE:
        raise InputError(f"{folder} is no LoRA; name a rank, or the error with --max-error")
    modules = {name: module for name, module in forms.linear_modules(model).items() if name in form.updates}
    progress("second moments of the task's inputs")
    sums = stream(model, modules, until(rows.moments, RetentionSettings().task_tokens), pad_id)
    known = {name: sums.of(name) for name in form.updates if name in sums.owner}
    turned = {name: turn(update, known.get(name)) for name, update in form.updates.items()}

    def losses(rank: int) -> Sequence[float]:
        progress(f"loss at rank {rank}")
        return form_losses.losses(model, at_rank(turned, rank), rows.selection, pad_id)

    full = max(len(update.a) for update in form.updates.values())
    start = path.Losses(tuple(losses(full)), label_counts(rows.selection))
    tried = search(full, start, losses)
    chosen = min([one.rank for one in tried if one.within], default=full)
    write_plain(out, padded(turned, chosen), chosen, source)
    return Narrowed(chosen, full, tried, len(rows.selection))


def search(full: int, start: path.Losses, losses: Callable[[int], Sequence[float]]) -> tuple[Tried, ...]:
    """Halves of the rank, until one is beyond the tolerance."""
    limit = path.allowed(path.parse_tolerance(None), start.mean)
    tried: list[Tried] = []
    rank = full // 2
    while rank >= 1:
        tried.append(Tried(rank, *path.paired(start.losses, losses(rank), start.labels), limit))
        if not tried[-1].within:
            break
        rank //= 2
    return tuple(tried)


def turn(update: Update, sums: InputSums | None) -> Update:
    """The same update with its rank-one parts in the order of their energy on the task's inputs (of the weights alone, where nothing was seen)."""
    import torch

    assert update.b is not None
    a, b = update.a.double(), update.b.double()
    q, r = torch.linalg.qr(b)
    values, vectors = torch.linalg.eigh(r @ energy(a, sums) @ r.T)
    vectors = vectors[:, values.argsort(descending=True)]
    return Update((vectors.T @ r @ a).float(), (q @ vectors).float())


def energy(a: "Tensor", sums: InputSums | None) -> "Tensor":
    """A Zt A^T, (r, r)."""
    if sums is None:
        return a @ a.T
    if sums.omega is None:
        return a @ (sums.products.to(a) / sums.tokens) @ a.T
    from lora_select.retention.filter import nystrom

    vectors, values, rest = nystrom(sums)
    seen = a @ vectors.to(a)
    return seen * values.to(a) @ seen.T + rest * a @ a.T


def at_rank(turned: Mapping[str, Update], rank: int) -> dict[str, Update]:
    """The leading parts of every layer."""
    return {name: Update(one.a[:rank], one.b[:, :rank] if one.b is not None else None) for name, one in turned.items()}


def padded(turned: Mapping[str, Update], rank: int) -> "dict[str, tuple[Tensor, Tensor]]":
    """Their factors, layers of a smaller rank filled up with zeros: engines take one rank."""
    from torch.nn.functional import pad

    return {
        name: (pad(one.a, (0, 0, 0, rank - len(one.a))), pad(one.b, (0, rank - len(one.a))))
        for name, one in at_rank(turned, rank).items()
        if one.b is not None
    }
