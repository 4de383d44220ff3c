"""The filter: A* = A Zt (Zt + lambda Zr)^{-1}, the generalised Tikhonov solution of keeping the task's function and forgetting less.

    D* = argmin_D tr((D - D0) Zt (D - D0)^T) + lambda tr(D Zr D^T) = D0 Zt (Zt + lambda Zr)^{-1}

with D0 = B A the trained update, Zt and Zr the second moments of the layer's inputs on task rows and on reference text. The free minimiser
has D0's rank and D0's column space: B stays, only A changes. In generalised eigencoordinates Zt v = mu Zr v each direction is multiplied by
mu / (mu + lambda).

References:
    Jin et al. (2023), *Dataless knowledge fusion* (RegMean): D* is their merge of the tuned model with the base; Meng et al. (2023), MEMIT, eq. 14;
    LoRM (arXiv 2410.17961), which solves it for A at fixed B.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from lora_select.errors import InputError
from lora_select.retention.moments import InputSums, Moments

RIDGE = 1e-4
"""Of the mean diagonal of Zt, added to Zt: directions that the task never used count as hardly used, not as never used."""
LEAST_TOKENS = 1 / 8
"""Tokens over width below which a second moment is refused."""


@final
@dataclass(frozen=True)
class Pair:
    """Zt and Zr of one input in one basis, float64: (n, n) each, or (k, k) in the columns of `basis` (n, k) with c I beyond it."""

    task: Tensor
    reference: Tensor
    basis: Tensor | None = None
    task_rest: float = 1.0
    reference_rest: float = 1.0


@final
@dataclass(frozen=True)
class Spread:
    """tr(D Zt D^T), tr(D Zr D^T) and tr(D Zr Zt^{-1} Zr D^T) of an update: what kappa is made of."""

    task: float
    reference: float
    inverse: float

    @property
    def kappa(self) -> float:
        """sqrt(<mu> <1/mu>), means over generalised eigendirections weighted by the update's energy on the reference; at least 1.

        At 1 the filter does what plain scaling does; for small distortion it takes off kappa times as much forgetting.
        """
        if not self.reference > 0:
            return 1.0
        return max(1.0, (self.task * self.inverse) ** 0.5 / self.reference)


def pairs(
    task: Moments, references: Sequence[Moments], *, ridge: float = RIDGE, prior: float = 0.0
) -> tuple[dict[str, Pair], tuple[str, ...], dict[str, str]]:
    """One pair for each input, by the owner's name; sentences about what had to be done otherwise; inputs without a pair, and why.

    Args:
        task: sums over task rows.
        references: one for each set of reference text; each counts the same, whatever its number of tokens.
        ridge: added to Zt, as a share of its mean diagonal.
        prior: added to Zr, as a share of its mean diagonal: shrinks directions that no reference text used.

    Raises:
        InputError: moments of another model, or no input that can be filtered.
    """
    found: dict[str, Pair] = {}
    left: dict[str, str] = {}
    raised: list[str] = []
    missing: list[str] = []
    for name, sums in task.sums.items():
        given = [other.of(name) for other in references if name in other.owner]
        if any(one.products.shape != sums.products.shape for one in given):
            raise InputError(
                f"the reference's second moment of {name} is {given[-1].width} wide, the task's {sums.width}; take both from one model"
            )
        try:
            scarcity = _scarcity(name, sums, given)
            raise_to = ridge * scarcity if scarcity > 1 else 0.0
            found[name] = _pair(name, sums, given, max(ridge, raise_to), max(prior, raise_to))
        except InputError as error:
            left[name] = str(error)
            continue
        missing += [name] if len(given) < len(references) else []
        raised += [name] if scarcity > 1 else []
    if not found:
        why = next(iter(left.values()), "the model has no input that can be measured")
        raise InputError(
            f"no layer can be filtered: {why}; bring more or longer rows, and take moments from the model that the adapter is for"
        )
    notes: list[str] = []
    if missing:
        notes.append(f"{len(missing)} inputs are not in every reference's second moments, first {missing[0]}")
    if raised:
        notes.append(
            f"{len(raised)} inputs are wider than their tokens are many (first {raised[0]}): the ridge is raised from {ridge:g} by "
            "width over tokens there, on both sides"
        )
    return found, tuple(notes), left


def _scarcity(name: str, task: InputSums, references: Sequence[InputSums]) -> float:
    """How many times wider the layer is than its tokens are many, at least 1.

    Raises:
        InputError: no reference text, or far too few tokens for the width.
    """
    if not references:
        raise InputError("no reference text reached it")
    fewest = min(one.tokens for one in (task, *references))
    if fewest < LEAST_TOKENS * task.width:
        raise InputError(
            f"{fewest} tokens are too few for the second moment of {name}, which is {task.width} wide: at least "
            f"{int(LEAST_TOKENS * task.width) + 1} are needed"
        )
    return max(1.0, task.width / fewest)


def _pair(name: str, task: InputSums, references: Sequence[InputSums], ridge: float, prior: float) -> Pair:
    if task.omega is None:
        zt = task.products.double() / task.tokens
        zr = torch.stack([one.products.to(zt) / one.tokens for one in references]).mean(0)
        eye = torch.eye(len(zt), dtype=zt.dtype, device=zt.device)
        return Pair(_definite(name, zt, ridge), zr + prior * zr.trace() / len(zr) * eye)
    forms = [nystrom(one) for one in (task, *references)]
    basis = torch.linalg.qr(torch.cat([vectors for vectors, _, _ in forms], dim=1))[0]
    dense = [
        (basis.T @ vectors * values) @ (vectors.T @ basis)
        + rest * torch.eye(basis.shape[1], dtype=basis.dtype, device=basis.device)
        for vectors, values, rest in forms
    ]
    mean_t = task.energy / task.tokens / task.width
    mean_r = sum(one.energy / one.tokens / one.width for one in references) / len(references)
    rest_r = sum(rest for _, _, rest in forms[1:]) / len(references)
    eye = torch.eye(basis.shape[1], dtype=basis.dtype, device=basis.device)
    return Pair(
        dense[0] + ridge * mean_t * eye,
        torch.stack(dense[1:]).mean(0) + prior * mean_r * eye,
        basis,
        forms[0][2] + ridge * mean_t,
        rest_r + prior * mean_r,
    )


def _definite(name: str, task: Tensor, ridge: float) -> Tensor:
    """Zt with its ridge added.

    Raises:
        InputError: it has negative eigenvalues all the same, as sums of too low a precision have.
    """
    raised = task + ridge * task.trace() / len(task) * torch.eye(len(task), dtype=task.dtype, device=task.device)
    if bool(torch.linalg.cholesky_ex(raised).info):
        raise InputError(
            f"the second moment of {name} has negative eigenvalues beyond its ridge of {ridge:g}: it was summed too coarsely; take it "
            "again on a device with float64, or raise the ridge"
        )
    return raised


def nystrom(sums: InputSums) -> tuple[Tensor, Tensor, float]:
    """V (n, k), values (k,) and c with Z ~ V diag(values) V^T + c I, from a sketch; float64.

    Y (Omega^T Y)^{-1} Y^T with a shift against cancellation (Tropp et al. 2017, algorithm 3); c spreads the energy that is missed.
    """
    assert sums.omega is not None
    y, omega = sums.products.double() / sums.tokens, sums.omega.double()
    shift = torch.finfo(torch.float32).eps * float(torch.linalg.matrix_norm(y, 2))
    y = y + shift * omega
    small = omega.T @ y
    factor, failed = torch.linalg.cholesky_ex((small + small.T) / 2)
    if bool(failed):
        raise InputError(
            "a sketched second moment is not positive definite: its tokens lie in too few directions; bring more rows"
        )
    left, singular, _ = torch.linalg.svd(
        torch.linalg.solve_triangular(factor.T, y, upper=True, left=False), full_matrices=False
    )
    values = (singular.square() - shift).clamp(min=0)
    width = sums.width
    rest = max(0.0, sums.energy / sums.tokens - float(values.sum())) / max(1, width - len(values))
    # c I also lies in the span, where it is no part of the missed energy: take it off there
    return left, (values - rest).clamp(min=0), rest


def filtered(a: Tensor, pair: Pair, strength: float) -> Tensor:
    """A* (r, n), float64, for A (r, n) and lambda = `strength`; all layers of one input may be stacked. A at lambda = 0."""
    rows = a.to(pair.task)
    if strength == 0:
        return rows
    inside = rows if pair.basis is None else rows @ pair.basis.to(rows)
    factor = torch.linalg.cholesky(pair.task + strength * pair.reference)
    kept = torch.cholesky_solve((inside @ pair.task).T, factor).T
    if pair.basis is None:
        return kept
    basis = pair.basis.to(rows)
    beyond = pair.task_rest / (pair.task_rest + strength * pair.reference_rest)
    return kept @ basis.T + beyond * (rows - inside @ basis.T)


def spread(a: Tensor, b: Tensor | None, pair: Pair) -> Spread:
    """The three traces of D = B A (D = A where `b` is None)."""
    rows = a.to(pair.task)
    inside = rows if pair.basis is None else rows @ pair.basis.to(rows)
    seen = inside @ pair.reference
    factor = torch.linalg.cholesky(pair.task)
    inverse = torch.cholesky_solve(seen.T, factor)
    grams = [inside @ pair.task @ inside.T, seen @ inside.T, seen @ inverse]
    if pair.basis is not None:
        outside = rows - inside @ pair.basis.to(rows).T
        gram = outside @ outside.T
        t, r = pair.task_rest, pair.reference_rest
        grams = [grams[0] + t * gram, grams[1] + r * gram, grams[2] + r * r / t * gram]
    if b is None:
        return Spread(*(float(gram.trace()) for gram in grams))
    weight = b.to(rows).T @ b.to(rows)
    return Spread(*(float((gram * weight).sum()) for gram in grams))


def moved(a: Tensor, b: Tensor | None, sums: InputSums) -> float:
    """tr(D Z D^T) of D = B A (D = A where `b` is None): the mean square of what the update adds to the layer's output, over the tokens of `sums`."""
    rows = a.to(sums.products.double())
    if sums.omega is None:
        seen = rows @ (sums.products.double() / sums.tokens) @ rows.T
    else:
        vectors, values, rest = nystrom(sums)
        inside = rows @ vectors
        seen = (inside * values) @ inside.T + rest * rows @ rows.T
    return float(seen.trace() if b is None else (seen * (b.to(rows).T @ b.to(rows))).sum())


def joined(parts: Mapping[str, Spread]) -> Spread:
    """Of all layers together."""
    return Spread(*(sum(getattr(one, name) for one in parts.values()) for name in ("task", "reference", "inverse")))
