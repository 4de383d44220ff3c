"""Slow, dense, float64 textbook versions of what the library computes matrix-free or by sketches."""

import numpy as np
import torch

torch.set_num_threads(1)  # matrices here are tiny: a second thread on a busy machine costs tenfold


def u_statistic(gradients: np.ndarray) -> float:
    """Mean of <G_j, G_k> over j != k, by a double loop; gradients (K, m, n)."""
    count = len(gradients)
    pairs = [np.vdot(gradients[j], gradients[k]) for j in range(count) for k in range(count) if j != k]
    return float(np.mean(pairs))


def cross_half_u_statistic(gradients: np.ndarray, folds: list[int]) -> float:
    """Mean of <G_j, G_k> over pairs of microbatches in different folds."""
    count = len(gradients)
    pairs = [np.vdot(gradients[j], gradients[k]) for j in range(count) for k in range(count) if folds[j] != folds[k]]
    return float(np.mean(pairs))


def noise_energy(gradients: np.ndarray) -> float:
    """Sum ||G_k - mean||^2 / (K - 1)."""
    return float(((gradients - gradients.mean(0)) ** 2).sum() / (len(gradients) - 1))


def weight_gradients(model, batches, loss_fn, names):
    """Full gradients of each microbatch's summed loss by autograd: {name: (K, m, n) float64}."""
    modules = dict(model.named_modules())
    found = {name: [] for name in names}
    for batch in batches:
        nll, _ = loss_fn(model, batch)
        grads = torch.autograd.grad(nll.sum(), [modules[name].weight for name in names])
        for name, grad in zip(names, grads, strict=True):
            found[name].append(grad.double().numpy())
    return {name: np.stack(grads) for name, grads in found.items()}


def projected_share(jacobian: torch.Tensor, gradient: torch.Tensor) -> float:
    """||P G||^2 / ||G||^2 with P the orthogonal projection on the range of a dense Jacobian (m n, p), by SVD."""
    left, values, _ = torch.linalg.svd(jacobian, full_matrices=False)
    kept = left[:, values > 1e-6 * values[0]]  # factors drawn in float32 have a rank up to their rounding
    return float((kept.T @ gradient.flatten()).square().sum() / gradient.square().sum())


def second_moment(rows: np.ndarray) -> np.ndarray:
    """Centred covariance of rows (tokens, n), divided by tokens."""
    centred = rows - rows.mean(0)
    return centred.T @ centred / len(rows)


def gauss_newton(module) -> np.ndarray:
    """(1/N) sum_t J_t^T (diag p_t - p_t p_t^T) J_t in the trainable parameters, one reverse pass a logit; (p, p) float64."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    logits = module()
    rows = []
    for logit in logits.flatten():
        found = torch.autograd.grad(logit, parameters, retain_graph=True, allow_unused=True)
        parts = [torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters, strict=True)]
        rows.append(torch.cat([part.double().flatten() for part in parts]))
    count, classes = logits.shape
    jacobian = torch.stack(rows).view(count, classes, -1)
    p = torch.softmax(logits.detach().double(), dim=1)
    hessian = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    return (torch.einsum("tcp,tcd,tdq->pq", jacobian, hessian, jacobian) / count).numpy()
