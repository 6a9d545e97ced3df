"""What a trained model is asked: errors, scores, attention sums, gates, first gradient.

Everything is a tensor operation over all runs and prompts at once; the tables come
back as data frames with one row a run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lib.kit.checks import choice, count, need
from lib.mamba_icl.model import Theta, gates, initial, preactivation, scores
from lib.mamba_icl.training import Trained
from lib.mamba_icl.world import (
    PatternWorld,
    Prompts,
    all_tasks,
    generator,
    sample_prompts,
)

if TYPE_CHECKING:
    import pandas as pd

TEST = 3  # purpose of the generator, see training
START_TEST = 4
K_TEST = 1.5  # kappa' ~ U(-K', K') with K' > 1


def error_rate(F: Tensor, z: Tensor) -> Tensor:
    """Share of prompts with z F < 0 (0 counts half): (runs, n) to (runs,)."""
    vote = z * F
    return ((vote < 0).double() + 0.5 * (vote == 0).double()).mean(-1)


def draw_test(
    world: PatternWorld,
    runs: int,
    n: int,
    l: int = 20,  # noqa: E741
    *,
    seed: int = 0,
    **rules,
) -> Prompts:
    """Test prompts (runs, n) over all tasks, with K' = K_TEST unless given.

    n: prompts a run; l: examples; seed: of the draw; rules: of `sample_prompts`.
    Returns `Prompts`. Source: 2510.00399, definition 2.
    """
    rules = {"K": K_TEST, "label": "flip", "tasks": all_tasks(world.M1)} | rules
    g = generator(seed, TEST, device=world.mu.device)
    return sample_prompts(world, (runs, n), l, generator=g, **rules)


def errors(
    models: Mapping[str, Trained],
    world: PatternWorld,
    alphas: Sequence[float],
    *,
    labels: Sequence[str] = ("flip",),
    n: int = 2000,
    l: int = 20,  # noqa: E741
    seed: int = 0,
    **rules,
) -> pd.DataFrame:
    """Test error of every model: columns model, label, alpha, run, error.

    models: by name, all with the same number of runs; alphas: outlier fractions;
    labels: rules, tried on the same prompts; n: prompts a run and point; l: examples a
    prompt; seed: of the prompts; rules: of `sample_prompts`. All models see the same
    prompts. Raises ValueError for what the sampler refuses.
    """
    import pandas as pd

    rows = []
    for place, alpha in enumerate(alphas):
        runs = next(iter(models.values())).loss.shape[1]
        drawn = draw_test(world, runs, n, l, seed=seed + place, frac=alpha, **rules)
        toss = generator(seed, TEST, place, device=world.mu.device)
        for label in labels:
            prompts = drawn.relabelled(label, toss)
            for name, model in models.items():
                found = error_rate(model(prompts.P), prompts.z).tolist()
                rows += [(name, label, alpha, run, e) for run, e in enumerate(found)]
    return pd.DataFrame(rows, columns=["model", "label", "alpha", "run", "error"])


def score_matrix(theta: Theta, world: PatternWorld) -> np.ndarray:
    """S = mu^T W_B^T W_C mu: rows are the example's pattern, columns the query's.

    theta: W_B, W_C (runs, N, d + 1). Returns (runs, M1, M1).
    """
    mu = torch.nn.functional.pad(world.mu, (0, 1))  # the label is 0
    keys, queries = mu @ theta["W_B"].mT, mu @ theta["W_C"].mT
    return (keys @ queries.mT).double().cpu().numpy()


def attention_sums(theta: Theta, prompts: Prompts) -> dict[str, np.ndarray]:
    """Mean over prompts of the sum of scores over "same" and "other" examples.

    "same" examples have the query's relevant pattern. Returns two arrays (runs,).
    Source: 2510.00399, Corollary 1 and Figure 3.
    """
    s = scores(theta, prompts.P)[..., :-1]
    masks = {"same": prompts.same, "other": ~prompts.same}
    return {
        name: (s * mask).sum(-1).mean(-1).double().cpu().numpy()
        for name, mask in masks.items()
    }


def gate_levels(w: Tensor, prompts: Prompts) -> dict[str, np.ndarray]:
    """Mean sigma(w^T p) of "clean" and "outlier" examples and of the "query".

    w: (runs, d + 1). Returns arrays (runs,); nan where there is none of a kind.
    Source: 2510.00399, Figure 4.
    """
    sigma = torch.sigmoid(preactivation(w, prompts.P)).double().cpu()
    mask = prompts.outlier.cpu()
    found = {"query": sigma[..., -1].mean(-1).numpy()}
    for name, chosen in (("clean", ~mask), ("outlier", mask)):
        total = (sigma[..., :-1] * chosen).sum((-1, -2))
        found[name] = (total / chosen.sum((-1, -2))).numpy()
    return found


def gates_by_rank(w: Tensor, prompts: Prompts, ranks: int = 10) -> np.ndarray:
    """Mean gate of the j-th clean example counted back from the query.

    w: (runs, d + 1); ranks: how many. Returns (runs, ranks), over the prompts that have
    so many clean examples. Source: 2510.00399, Corollary 2 (ii).
    """
    count("ranks", ranks)
    G = gates(w, prompts.P)[..., :-1].double()
    clean = ~prompts.outlier
    rank = clean.flip(-1).cumsum(-1).flip(-1) * clean  # 1 next to the query, 0: outlier
    rows = []
    for j in range(1, ranks + 1):
        here = rank == j
        rows.append((G * here).sum((-1, -2)) / here.sum((-1, -2)))
    return torch.stack(rows, -1).cpu().numpy()


def first_gradient(
    arm: str,
    world: PatternWorld,
    n: int,
    l: int = 20,  # noqa: E741
    p_a: float = 0.6,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """E[z sum_i G_i y_i p_i p_query^T] at the start, in pattern coordinates.

    The direction in which W_B^T W_C first moves while the hinge is active. arm:
    "mamba", with a fresh w(0) for every 100 prompts, or "linear"; n: prompts, a
    multiple of 100. Returns blocks (M1, M1), (M2, M1), (V, M1) named mu, nu and v: rows
    for the example's pattern, columns for the query's; and "pull" (), the mean gate of
    clean examples with another pattern over that of clean ones with the query's. Raises
    ValueError for an arm or a number of prompts. Derived here.
    """
    choice("arm", arm, ("mamba", "linear"))
    need(
        n >= 100 and n % 100 == 0,
        f"n is {n}; give a multiple of 100 prompts, since each w(0) serves 100.",
    )
    device = world.mu.device
    g = generator(seed, START_TEST, device=device)
    p = sample_prompts(world, (n // 100, 100), l, generator=g, frac=p_a)
    G = torch.ones_like(p.P[..., 0])
    if arm == "mamba":
        start = {"generator": g, "dtype": world.mu.dtype}
        G = gates(initial(arm, world.d, runs=(n // 100,), **start)["w"], p.P)
    weight = p.z[..., None] * G * p.P[..., -1]  # (n / 100, 100, l + 1)
    context = torch.einsum("rbl,rblc->rbc", weight, p.P)[..., : world.d]
    move = torch.einsum("rbc,rbq->cq", context, p.P[..., -1, : world.d]).double() / n
    own, other = (
        G[..., :-1][mask & ~p.outlier].double().mean() for mask in (p.same, ~p.same)
    )
    found = {"pull": (other / own).cpu().numpy()}
    query = _unit(world.mu)
    for name in ("mu", "nu", "v"):
        found[name] = (_unit(getattr(world, name)) @ move @ query.T).cpu().numpy()
    return found


def _unit(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows.double(), dim=1)


def cross_ratio(block: np.ndarray) -> float:
    """Mean off the diagonal over mean on it, of a square matrix."""
    diagonal = np.trace(block)
    return float((block.sum() - diagonal) / (len(block) - 1) / diagonal)


def with_scores(world: PatternWorld, S: np.ndarray) -> Theta:
    """theta whose score matrix is S (M1, M1): W_B = I, W_C built from the patterns.

    The ideal voter has S = 1 on the diagonal and -1 beside it.
    """
    mu = torch.nn.functional.pad(world.mu, (0, 1))
    inner = torch.as_tensor(S, **world.place) / world.beta**4
    return {"W_B": torch.eye(world.d + 1, **world.place), "W_C": mu.T @ inner @ mu}
