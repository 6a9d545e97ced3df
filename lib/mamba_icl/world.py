"""The pattern world: relevant and irrelevant patterns, outliers, tasks and prompts.

An input is x = mu_j + kappa nu_k, and with a chance it carries an additive outlier; a
task (a, b) gives mu_a the label +1 and mu_b the label -1. A prompt holds l labelled
examples and a query whose label is asked. Source: 2510.00399, section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import permutations

import torch
from torch import Tensor
from torch.nn.functional import embedding, pad  # embedding: faster than rows[i]

from lib.kit.checks import choice, count, need

LABELS = ("coin", "flip", "target+", "target-")
OUTLIERS = ("train", "combos", "combos+u", "u")
PLACEMENTS = ("iid", "exact", "far", "close")
TASKS = ("all", "tournament", "cycle")
# The paper's test outliers v' = sum_s COMBOS[., s] v*_s; the rows sum to .9, .5 and .3.
COMBOS = ((0.7, 0.6, -0.4), (0.4, 0.7, -0.6), (-0.7, 0.5, 0.5))


@dataclass(frozen=True)
class Prompts:
    """A batch of prompts with what the sampler knows about them.

    P: (..., l + 1, d + 1), rows (x_i, y_i), the last one (x_query, 0); z: (...), the
    query's label, +1 or -1; outlier: (..., l), True where an example carries one;
    pattern: (..., l + 1), the relevant pattern of each input.
    """

    P: Tensor
    z: Tensor
    outlier: Tensor
    pattern: Tensor

    @property
    def same(self) -> Tensor:
        """(..., l), True where an example has the query's relevant pattern."""
        return self.pattern[..., :-1] == self.pattern[..., -1:]

    def first(self) -> Prompts:
        """The prompts of the first run alone, without the dimension of runs."""
        return Prompts(self.P[0], self.z[0], self.outlier[0], self.pattern[0])

    def relabelled(
        self, label: str, generator: torch.Generator | None = None
    ) -> Prompts:
        """The same prompts with another rule for the labels of the outliers.

        label: one of LABELS; generator: for "coin". Returns new prompts. Raises
        ValueError for an unknown rule or a missing generator.
        """
        true = torch.where(self.same, self.z[..., None], -self.z[..., None])
        y = outlier_labels(true, label, generator)
        P = self.P.clone()
        P[..., :-1, -1] = torch.where(self.outlier, y, true)
        return replace(self, P=P)


def outlier_labels(
    true: Tensor, label: str, generator: torch.Generator | None = None
) -> Tensor:
    """The labels that outlier examples get: a fair coin, flipped, or one target class.

    true: labels +1 and -1 of any shape; label: one of LABELS; generator: for "coin".
    Returns labels of that shape. Raises ValueError for an unknown rule or a coin
    without generator. Source: 2510.00399, definitions 1 and 2, Figure 2.
    """
    choice("The label rule", label, LABELS)
    if label == "flip":
        return -true
    if label != "coin":
        return torch.full_like(true, 1.0 if label == "target+" else -1.0)
    need(generator is not None, "The label rule 'coin' needs a generator to toss it.")
    coin = torch.randint(2, true.shape, generator=generator, device=true.device)
    return (2 * coin - 1).to(true.dtype)


# -- tasks --------------------------------------------------------------------------


def task_list(tasks: str | Sequence[Sequence[int]], M1: int) -> list[tuple[int, int]]:
    """Training tasks as ordered pairs (a, b): mu_a is labelled +1, mu_b is -1.

    tasks: "all" ordered pairs; "tournament", one order of each pair (for an odd M1, so
    that every pattern is as often +1 as -1); "cycle", (0,1), ..., (M1-1,0); or the
    pairs themselves. M1: number of relevant patterns. Raises ValueError for pairs that
    do not exist, and where a pattern is not as often +1 as -1 (the uniformity
    condition, Condition 1 of 2510.00399 and 3.2 of 2402.15607).
    """
    count("M1", M1, 2)
    if isinstance(tasks, str):
        choice("tasks", tasks, TASKS)
        need(
            tasks != "tournament" or M1 % 2 == 1,
            f"M1 is {M1}: in a tournament every pattern meets {M1 - 1} others, an odd "
            "number, so the uniformity condition cannot hold. Give an odd M1.",
        )
        if tasks == "all":
            return list(permutations(range(M1), 2))
        steps = (M1 - 1) // 2 if tasks == "tournament" else 1
        return [(a, (a + s) % M1) for s in range(1, steps + 1) for a in range(M1)]
    pairs = [(int(a), int(b)) for a, b in tasks]
    need(len(pairs) > 0, "The list of tasks is empty; give at least one pair (a, b).")
    for a, b in pairs:
        good = a != b and 0 <= a < M1 and 0 <= b < M1
        need(
            good,
            f"The task ({a}, {b}) needs two different patterns between 0 and {M1 - 1}.",
        )
    check_uniform(pairs, M1)
    return pairs


def check_uniform(pairs: Sequence[Sequence[int]], M1: int) -> None:
    """Raise ValueError where a pattern is not labelled +1 as often as -1.

    pairs: tasks (a, b); M1: number of patterns. Source: 2402.15607, Condition 3.2.
    """
    for j in range(M1):
        plus, minus = (sum(pair[side] == j for pair in pairs) for side in (0, 1))
        need(
            plus == minus > 0,
            f"The tasks violate the uniformity condition: pattern {j} is labelled +1 "
            f"in {plus} of them and -1 in {minus}. Give tasks in which every pattern "
            "has each label equally often, such as a cycle.",
        )


def all_tasks(M1: int) -> list[tuple[int, int]]:
    """Every ordered pair of different patterns, on which models are tested."""
    return task_list("all", M1)


# -- the world ----------------------------------------------------------------------


class PatternWorld:
    """Orthogonal patterns and outliers of one world, and the tasks it trains on.

    d: input dimension; M1, M2, V: numbers of relevant patterns mu (M1, d), irrelevant
    patterns nu (M2, d) and outliers v (V, d); what is left of the space is u (rest, d).
    beta: norm of the patterns; outlier_norm: of the outliers and of u, beta unless
    given; tasks: see `task_list`; seed: of the rotation; dtype, device: of the tensors.
    Raises ValueError for more directions than dimensions and wrong numbers.
    Source: 2510.00399, section 3.1 (the norm of the outliers is not in its main text).
    """

    def __init__(
        self,
        d: int = 30,
        M1: int = 6,
        M2: int = 10,
        V: int = 3,
        beta: float = 3.0,
        outlier_norm: float | None = None,
        tasks: str | Sequence[Sequence[int]] = "all",
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> None:
        for name, value, least in (("M1", M1, 2), ("M2", M2, 1), ("V", V, 1)):
            count(name, value, least)
        need(
            d >= M1 + M2 + V,
            f"{M1} relevant and {M2} irrelevant patterns and {V} outliers cannot be "
            f"orthogonal in d = {d} dimensions: give d >= {M1 + M2 + V}, or fewer.",
        )
        need(beta > 0, f"beta is {beta}; give a positive norm.")
        g = torch.Generator().manual_seed(seed)
        Q, R = torch.linalg.qr(torch.randn(d, d, generator=g, dtype=torch.float64))
        rows = (Q * R.diagonal().sign()).T  # Haar distributed, orthonormal rows
        rows = rows.to(device, dtype)
        self.d, self.M1, self.M2, self.V, self.beta = d, M1, M2, V, beta
        self.mu, self.nu, rest = rows.split([M1, M2, d - M1 - M2])
        self.mu, self.nu = beta * self.mu, beta * self.nu
        self.v, self.u = ((outlier_norm or beta) * rest).split([V, len(rest) - V])
        self.tasks = task_list(tasks, M1)

    @property
    def place(self) -> dict:
        """dtype and device of the world's tensors."""
        return {"dtype": self.mu.dtype, "device": self.mu.device}

    def rotated(self, Q: Tensor) -> PatternWorld:
        """The same world seen in rotated coordinates x -> Q x; Q: (d, d) orthogonal."""
        other = object.__new__(PatternWorld)
        other.__dict__.update(self.__dict__)
        for name in ("mu", "nu", "v", "u"):
            setattr(other, name, getattr(self, name) @ Q.T)
        return other

    def directions(self, outliers: str | Tensor) -> Tensor:
        """The outlier directions of a rule: (how many, d).

        outliers: "train", the training ones v*; "combos", the paper's three test
        outliers in V'; "combos+u", the same plus a direction that training never saw;
        "u", that direction alone; or a tensor (n, d) of your own. Raises ValueError
        for an unknown word and where the world has no such direction.
        Source: 2510.00399, section 5 and the set V' of section 3.
        """
        if isinstance(outliers, Tensor):
            return outliers.to(**self.place)
        choice("outliers", outliers, OUTLIERS)
        if outliers == "train":
            return self.v
        if "u" in outliers.removeprefix("combos"):
            need(
                len(self.u) > 0,
                "The patterns fill the space: no free direction u left.",
            )
        if outliers == "u":
            return self.u[:1]
        need(self.V == 3, f"The paper's combinations are of 3 outliers, not {self.V}.")
        combos = torch.tensor(COMBOS, **self.place) @ self.v
        return combos + self.u[:1] if outliers == "combos+u" else combos


def generator(*seed: int, device: str | torch.device = "cpu") -> torch.Generator:
    """A generator of its own for one purpose: the numbers name run and purpose."""
    mixed = 0
    for part in seed:
        mixed = (mixed * 1_000_003 + int(part) + 1) % 2**62
    return torch.Generator(device=device).manual_seed(mixed)


# -- prompts ------------------------------------------------------------------------


def outlier_mask(
    shape: tuple[int, ...],
    l: int,  # noqa: E741 (the paper's letter)
    frac: float | Tensor,
    placement: str,
    g: torch.Generator,
) -> Tensor:
    """Which examples carry an outlier: (*shape, l), True where they do.

    frac: outlier fraction in [0, 1), a number or a tensor that broadcasts to shape.
    placement: "iid", each with that probability; "exact", round(frac l) at random
    places; "far", the ones farthest from the query; "close", the ones next to it.
    Raises ValueError for a fraction outside [0, 1) and an unknown placement.
    """
    choice("placement", placement, PLACEMENTS)
    frac = torch.as_tensor(frac, dtype=torch.float64, device=g.device)
    need(
        bool(((frac >= 0) & (frac < 1)).all()),
        f"The outlier fraction is {frac.max().item():g}; give one in [0, 1): with "
        "outliers alone no example would carry the task.",
    )
    frac = frac.expand(shape)[..., None]
    draw = torch.rand(*shape, l, generator=g, device=g.device)
    if placement == "iid":
        return draw < frac
    if placement == "exact":
        place = draw.argsort(-1).argsort(-1)
    else:
        place = torch.arange(l, device=g.device).expand(*shape, l)
    place = l - 1 - place if placement == "close" else place
    return place < (frac * l).round()


def sample_prompts(
    world: PatternWorld,
    shape: tuple[int, ...],
    l: int = 20,  # noqa: E741
    *,
    generator: torch.Generator,
    frac: float | Tensor = 0.0,
    kappa_a: float = 2.0,
    K: float = 0.5,
    label: str = "coin",
    outliers: str | Tensor = "train",
    placement: str = "iid",
    tasks: Sequence[Sequence[int]] | None = None,
) -> Prompts:
    """Draw prompts: P (*shape, l + 1, d + 1) with labels, outliers and patterns.

    l: examples a prompt; generator: the source of every draw, on the world's device;
    frac: outlier fraction, a number or a tensor that broadcasts to shape; kappa_a:
    size of the outliers; K: kappa ~ U(-K, K); label: rule for the outliers' labels
    (LABELS); outliers: see `PatternWorld.directions`; placement: see `outlier_mask`;
    tasks: pairs to draw from, the world's own unless given. The query never carries an
    outlier. Raises ValueError for what these say. Source: 2510.00399, definitions 1, 2.
    """
    count("l", l)
    g, device = generator, world.mu.device
    pairs = torch.tensor(tasks or world.tasks, device=device)
    pair = pairs[torch.randint(len(pairs), shape, generator=g, device=device)]
    side = torch.randint(2, (*shape, l + 1), generator=g, device=device)
    pattern = pair.gather(-1, side)  # mu_a or mu_b
    k = torch.randint(world.M2, side.shape, generator=g, device=device)
    kappa = torch.rand(side.shape, generator=g, **world.place) * 2 - 1
    mu, nu, v = (
        pad(e, (0, 1)) for e in (world.mu, world.nu, world.directions(outliers))
    )
    P = embedding(pattern, mu).addcmul_(K * kappa[..., None], embedding(k, nu))
    mask = outlier_mask(shape, l, frac, placement, g)
    s = torch.randint(len(v), mask.shape, generator=g, device=device)
    P[..., :-1, :].addcmul_(kappa_a * mask[..., None].to(P.dtype), embedding(s, v))
    y = (1 - 2 * side).to(P.dtype)  # +1 for mu_a, -1 for mu_b
    true = y[..., :-1]
    P[..., :-1, -1] = torch.where(mask, outlier_labels(true, label, g), true)
    return Prompts(P, y[..., -1].clone(), mask, pattern)
