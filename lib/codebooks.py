"""Codebooks: where the labels of self-supervised speech come from.

Fixed ones (`RandomProjection`, `fitted_projection`), fitted ones (`KMeans`), moving
ones (`EMACodebook`), selections with a gradient (`gumbel_select`, `ProductQuantizer`),
and how much of a codebook is in use (`usage`). Vectors stand on the last axis; codes
are whole numbers 0 .. V - 1. Modules keep their codes as buffers, so a checkpoint
holds them. Frames past the end of an utterance must be taken out before.
Sources: 2202.01855 (BEST-RQ), 2305.10005 (DinoSR), 2006.11477 (wav2vec 2.0),
2509.15430 (BiRQ).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from lib.kit.checks import choice, count, need

CHUNK = 1 << 16  # vectors whose distances are held at a time


def _vectors(x: Tensor, d: int, least: int = 1) -> Tensor:
    """x (..., d) as (n, d). Raises ValueError for another d, too few or not finite."""
    need(
        x.dim() > 0 and x.shape[-1] == d,
        f"The vectors have shape {tuple(x.shape)}; give (..., {d}).",
    )
    x = x.reshape(-1, d)
    need(
        len(x) >= least,
        f"There are {len(x)} vectors for {least} codes; give at least as many.",
    )
    need(
        bool(torch.isfinite(x).all()),
        "The vectors hold values that are not finite; look at the features first.",
    )
    return x


def nearest_code(x: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest code of every vector in Euclidean distance.

    x: (..., d); codes: (V, d). Returns labels (...) and squared distances (...).
    Raises nothing of its own.
    """
    flat, square = x.reshape(-1, x.shape[-1]), codes.square().sum(1)
    labels, away = [], []
    for part in flat.split(CHUNK):
        least, label = torch.addmm(square, part, codes.T, alpha=-2).min(1)
        labels.append(label)
        away.append((least + part.square().sum(1)).clamp(min=0))
    shape = x.shape[:-1]
    if not labels:
        return x.new_zeros(shape, dtype=torch.long), x.new_zeros(shape)
    return torch.cat(labels).view(shape), torch.cat(away).view(shape)


# -- projections --------------------------------------------------------------------


class ProjectionQuantizer(nn.Module):
    """Codes of projected vectors: argmax_j cos(A x, c_j), or by Euclidean distance.

    A: (d, d_c); C: (V, d_c), both frozen; distance: "cosine" (BEST-RQ) or "l2" (what
    some public code does). Raises ValueError for shapes or another distance.
    Source: 2202.01855, section 3.1.
    """

    A: Tensor
    C: Tensor

    def __init__(self, A: Tensor, C: Tensor, distance: str = "cosine") -> None:
        super().__init__()
        choice("distance", distance, ("cosine", "l2"))
        need(
            A.dim() == C.dim() == 2 and A.shape[1] == C.shape[1],
            f"A has shape {tuple(A.shape)} and C {tuple(C.shape)}; give (d, d_c) and "
            "(V, d_c).",
        )
        self.distance = distance
        self.register_buffer("A", A.detach().clone())
        self.register_buffer("C", C.detach().clone())

    def logits(self, x: Tensor, kappa: float = 1.0) -> Tensor:
        """kappa times the similarity of every code, differentiable in x.

        x: (..., d). Returns (..., V): kappa cos(A x, c), for "l2" -kappa |A x - c|^2.
        """
        z = x @ self.A
        if self.distance == "cosine":
            C = functional.normalize(self.C, dim=-1)
            return kappa * functional.normalize(z, dim=-1) @ C.T
        far = z.square().sum(-1, keepdim=True) + self.C.square().sum(-1)
        return -kappa * (far - 2 * z @ self.C.T)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """The labels of normalised vectors: x (..., d) to (...). Raises ValueError."""
        flat = _vectors(x, len(self.A))
        labels = [self.logits(part).argmax(-1) for part in flat.split(CHUNK)]
        return torch.cat(labels).view(x.shape[:-1])


class RandomProjection(ProjectionQuantizer):
    """BEST-RQ's quantizer: A Xavier-uniform, codes N(0, I), both drawn once.

    d: values a vector; d_c: of a code; V: codes; seed; distance: see above.
    Feed it features of zero mean and unit variance, else few codes are used.
    """

    def __init__(
        self,
        d: int,
        d_c: int = 16,
        V: int = 64,
        seed: int = 0,
        distance: str = "cosine",
    ) -> None:
        for name, size in (("d", d), ("d_c", d_c), ("V", V)):
            count(name, size)
        g = torch.Generator().manual_seed(seed)
        A = nn.init.xavier_uniform_(torch.empty(d, d_c), generator=g)
        super().__init__(A, torch.randn(V, d_c, generator=g), distance)


def fitted_projection(
    x: Tensor, d_c: int, V: int, seed: int = 0, codes: str = "data"
) -> ProjectionQuantizer:
    """A quantizer fitted once: the top principal directions, then codes among the data.

    x: (..., d) vectors; d_c: directions kept, unwhitened; V: codes; codes: "data",
    random vectors of x, or "kmeans", 15 iterations of spherical k-means from them.
    Raises ValueError for sizes or another word.
    """
    choice("codes", codes, ("data", "kmeans"))
    count("V", V)
    d = x.shape[-1]
    need(1 <= d_c <= d, f"d_c is {d_c}; there are {d} directions to choose from.")
    flat = _vectors(x.detach(), d, V)
    centred = (flat - flat.mean(0)).double()
    _, directions = torch.linalg.eigh(centred.T @ centred)  # eigenvalues ascend
    A = directions.flip(1)[:, :d_c].to(flat.dtype)
    if codes == "data":
        C = (flat @ A)[_rows(len(flat), V, seed)]
    else:
        fit = KMeans(V, iterations=15, seed=seed, spherical=True, start="rows")
        C = fit.fit(flat @ A).codes
    return ProjectionQuantizer(A, C)


def _rows(n: int, V: int, seed: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:V]


# -- k-means ------------------------------------------------------------------------


class KMeans:
    """Lloyd's k-means, or its mini-batch form, on the CPU or where the data is.

    V: codes; iterations: at most; seed; spherical: unit vectors and unit codes, so
    that the nearest is the one of largest cosine; batch: vectors an iteration, None
    for all; start: "k-means++" or "rows", random vectors. A code without members stays
    where it is. After `fit`: codes (V, d), inertia (mean squared distance before each
    iteration's move, then of the end). Raises ValueError for sizes.
    """

    codes: Tensor

    def __init__(
        self,
        V: int,
        iterations: int = 30,
        seed: int = 0,
        spherical: bool = False,
        batch: int | None = None,
        start: str = "k-means++",
    ) -> None:
        count("V", V)
        count("iterations", iterations)
        count("batch", 1 if batch is None else batch)
        choice("start", start, ("k-means++", "rows"))
        self.V, self.iterations, self.seed, self.batch = V, iterations, seed, batch
        self.spherical, self.start = spherical, start
        self.inertia: list[float] = []

    def fit(self, x: Tensor, codes: Tensor | None = None) -> KMeans:
        """Fit the codes to vectors x (..., d), from given codes (V, d) if there are.

        Stops early when no label changes. Returns itself. Raises ValueError for fewer
        vectors than codes or values that are not finite.
        """
        x = self._ready(_vectors(x.detach(), x.shape[-1], self.V))
        need(
            codes is None or codes.shape == (self.V, x.shape[1]),
            f"The codes must have shape ({self.V}, {x.shape[1]}) to begin with.",
        )
        g = torch.Generator().manual_seed(self.seed)
        self.codes = self._begin(x, g) if codes is None else self._ready(codes.clone())
        self.inertia, before = [], None
        moved = x.new_zeros(self.V)  # members so far, for the mini-batch form
        for _ in range(self.iterations):
            part = x
            if self.batch:
                part = x[torch.randint(len(x), (self.batch,), generator=g).to(x.device)]
            labels, away = nearest_code(part, self.codes)
            self.inertia.append(float(away.mean()))
            if not self.batch and before is not None and torch.equal(labels, before):
                break
            before = labels
            moved = self._move(part, labels, moved)
        self.inertia.append(float(nearest_code(x, self.codes)[1].mean()))
        return self

    def __call__(self, x: Tensor) -> Tensor:
        """The labels of vectors: x (..., d) to (...). Raises ValueError before fit."""
        need(hasattr(self, "codes"), "This k-means is not fitted; call fit first.")
        _vectors(x, self.codes.shape[1])
        return nearest_code(self._ready(x), self.codes)[0]

    def _ready(self, x: Tensor) -> Tensor:
        return functional.normalize(x, dim=-1) if self.spherical else x

    def _begin(self, x: Tensor, g: torch.Generator) -> Tensor:
        """First codes: random vectors, or each drawn by its squared distance."""
        if self.start == "rows":
            return x[torch.randperm(len(x), generator=g)[: self.V].to(x.device)].clone()
        rows = [int(torch.randint(len(x), (), generator=g))]
        away = nearest_code(x, x[rows])[1]
        for u in torch.rand(self.V - 1, generator=g, dtype=torch.float64):
            total = away.double().cumsum(0)
            row = int((total < u * total[-1]).sum().clamp(max=len(x) - 1))
            rows.append(row)
            away = torch.minimum(away, nearest_code(x, x[row : row + 1])[1])
        return x[rows].clone()

    def _move(self, x: Tensor, labels: Tensor, moved: Tensor) -> Tensor:
        """Codes to the mean of their members; mini-batch: of all members so far."""
        n, sums = _members(x, labels, self.V)
        old = moved if self.batch else torch.zeros_like(moved)
        some = (n > 0)[:, None]
        mean = (old[:, None] * self.codes + sums) / (old + n).clamp(min=1)[:, None]
        self.codes = self._ready(torch.where(some, mean, self.codes))
        return old + n


def _members(x: Tensor, labels: Tensor, V: int) -> tuple[Tensor, Tensor]:
    """How many vectors every code has (V,), and their sums (V, d)."""
    n = torch.bincount(labels, minlength=V).to(x.dtype)
    return n, x.new_zeros(V, x.shape[1]).index_add_(0, labels, x)


# -- a codebook that follows its members --------------------------------------------


class EMACodebook(nn.Module):
    """Codes as decaying means of their members, DinoSR's rule.

    d: values a vector; V: codes; decay: of sums and counts, 0 for the batch's means;
    seed: of the first codes N(0, I). For a code with n members in the batch:
    S <- decay S + (1 - decay) sum of members, N <- decay N + (1 - decay) n, code S/N;
    one without members keeps S and N. Raises ValueError for sizes.
    Source: 2305.10005, section 3, and its code.
    """

    sums: Tensor
    counts: Tensor

    def __init__(self, d: int, V: int = 64, decay: float = 0.9, seed: int = 0) -> None:
        super().__init__()
        count("d", d)
        count("V", V)
        need(0 <= decay < 1, f"decay is {decay}; give a number from 0 to below 1.")
        self.decay = decay
        g = torch.Generator().manual_seed(seed)
        self.register_buffer("sums", torch.randn(V, d, generator=g))
        self.register_buffer("counts", torch.ones(V))

    @property
    def codes(self) -> Tensor:
        """The codes S / N: (V, d)."""
        return self.sums / self.counts[:, None]

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """The nearest codes: x (..., d) to (...). Raises ValueError for another d."""
        _vectors(x, self.sums.shape[1])
        return nearest_code(x, self.codes)[0]

    @torch.no_grad()
    def update(self, x: Tensor, labels: Tensor) -> None:
        """Move the codes to their members: x (..., d), labels (...), in place."""
        x = _vectors(x, self.sums.shape[1]).to(self.sums.dtype)
        n, sums = _members(x, labels.reshape(-1), len(self.sums))
        keep = torch.where(n > 0, self.decay, 1.0).to(n)
        self.sums.mul_(keep[:, None]).add_(sums * (1 - keep)[:, None])
        self.counts.mul_(keep).add_(n * (1 - keep))


# -- selection with a gradient ------------------------------------------------------


def gumbel_select(
    logits: Tensor,
    tau: float = 0.5,
    hard: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Softmax((s + Gumbel noise) / tau): a random code, with a gradient.

    logits: s (..., V), such as kappa cos; tau: towards 0 a one-hot code, towards
    infinity 1/V; hard: one-hot forward, the soft gradient backward; generator: of the
    noise, on the CPU, None for torch's own. Returns (..., V) that sums to 1, its
    largest entry being code j with probability softmax(s)_j. Raises ValueError for
    tau. Source: 1611.01144; 2509.15430 (labels).
    """
    need(tau > 0, f"tau is {tau}; give a positive temperature.")
    waits = torch.empty(logits.shape, dtype=logits.dtype).exponential_(
        generator=generator
    )
    noise = -waits.clamp(min=torch.finfo(waits.dtype).tiny).log()
    soft = ((logits + noise.to(logits.device)) / tau).softmax(-1)
    if not hard:
        return soft
    chosen = functional.one_hot(soft.argmax(-1), soft.shape[-1]).to(soft.dtype)
    return chosen + (soft - soft.detach())  # exactly one-hot: the bracket is 0


class Product(NamedTuple):
    """What a product quantizer gives: vectors, codes (..., G), mean use p (G, V)."""

    q: Tensor
    codes: Tensor
    p: Tensor


class ProductQuantizer(nn.Module):
    """G codebooks of V entries each, chosen by straight-through Gumbel, side by side.

    d: values a vector; G, V: codebooks and their entries; d_q: values of the result, a
    multiple of G. Raises ValueError for sizes. Source: 2006.11477, section 2.
    """

    def __init__(self, d: int, G: int = 2, V: int = 32, d_q: int = 64) -> None:
        super().__init__()
        for name, size in (("d", d), ("G", G), ("V", V), ("d_q", d_q)):
            count(name, size)
        need(d_q % G == 0, f"d_q is {d_q} and G is {G}; give a d_q that G divides.")
        self.G, self.V = G, V
        self.score = nn.Linear(d, G * V)
        self.entries = nn.Parameter(torch.randn(G, V, d_q // G))

    def forward(
        self,
        x: Tensor,
        tau: float = 1.0,
        generator: torch.Generator | None = None,
        noise: bool = True,
    ) -> Product:
        """Quantize x (..., d); `noise` False takes the likeliest entries, no gradient
        to their scores. Raises ValueError for tau."""
        scores = self.score(x).unflatten(-1, (self.G, self.V))
        if noise:
            y = gumbel_select(scores, tau, hard=True, generator=generator)
        else:
            y = functional.one_hot(scores.argmax(-1), self.V).to(scores.dtype)
        q = torch.einsum("...gv,gvc->...gc", y, self.entries).flatten(-2)
        p = scores.softmax(-1).reshape(-1, self.G, self.V).mean(0)
        return Product(q, y.argmax(-1), p)


def diversity_loss(p: Tensor) -> Tensor:
    """How far the mean use of codebooks is from uniform: 0 there, near 1 at one code.

    p: (G, V) mean probabilities. Returns (G V - sum_g exp H(p_g)) / (G V).
    Source: 2006.11477, eq. 4 as in its code.
    """
    entropy = -torch.xlogy(p, p).sum(-1)
    return (p.numel() - entropy.exp().sum()) / p.numel()


# -- how much of a codebook is in use -----------------------------------------------


class Usage(NamedTuple):
    """Use of a codebook: codes in use, perplexity exp H, members of every code (V,)."""

    used: int
    perplexity: float
    counts: Tensor


def usage(labels: Tensor, V: int) -> Usage:
    """How many of V codes occur, and how evenly.

    labels: whole numbers of any shape, without padding. Perplexity runs from 1 (one
    code) to V (all alike). Raises ValueError for no labels or one outside 0 .. V - 1.
    """
    labels = labels.reshape(-1)
    need(len(labels) > 0, "There are no labels to count; give at least one frame.")
    least, most = int(labels.min()), int(labels.max())
    need(
        least >= 0 and most < V,
        f"The labels run from {least} to {most}; a codebook of {V} has 0 to {V - 1}.",
    )
    counts = torch.bincount(labels, minlength=V)
    p = counts.double() / counts.sum()
    perplexity = float((-torch.xlogy(p, p).sum()).exp())
    return Usage(int((counts > 0).sum()), perplexity, counts)
