"""Bilevel problems whose solutions and hypergradients are known. All float64.

`Valley`: two quadratics of two numbers, everything in closed form. `toy_*`: the example
of 2302.05185, not convex. `Sources`: quadratic sources for local constraints.
`Cleaning`: weights of training samples, some of which are corrupted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.func import grad, jacrev

from lib.kit.checks import choice, count, need

KINDS = ("mixing", "exact", "first_order", "reptile")
TOY_BOX = (0.0, 3.0)  # the set C of x


def fixed_point(
    step: Callable[[Tensor], Tensor], start: Tensor
) -> tuple[Tensor, Tensor]:
    """Where an iteration stays, and whether it gets there: one Newton step.

    step: (n,) -> (n,), affine (exact then) or nearly so around start: (n,). Returns
    the point (n,) and the largest size of an eigenvalue of the iteration: below 1 it
    converges by that factor a step, above 1 it diverges. Raises ValueError for shapes.
    Source: textbook.
    """
    need(
        start.ndim == 1,
        f"start has shape {tuple(start.shape)}; give one axis (n,).",
    )
    J = jacrev(step)(start)  # (n, n)
    move = torch.linalg.solve(torch.eye(len(start)).to(J) - J, step(start) - start)
    return start + move, torch.linalg.eigvals(J).abs().max()


# -- two quadratics -----------------------------------------------------------------


@dataclass(frozen=True)
class Valley:
    """f = (x - a)^2 / 2 + (y - b)^2 / 2 over y in argmin g, g = mu (y - c x)^2 / 2.

    x, y: scalar tensors, or any shape (sums of independent problems).
    Source: derived here; the penalty's rates are those of 2302.05185.
    """

    a: float = 1.0
    b: float = -1.0
    c: float = 2.0
    mu: float = 0.5

    def f(self, x: Tensor, y: Tensor) -> Tensor:
        """The upper level, a scalar tensor."""
        return ((x - self.a).square() + (y - self.b).square()).sum() / 2

    def g(self, x: Tensor, y: Tensor) -> Tensor:
        """The lower level, a scalar tensor; v(x) = min g(x, .) = 0."""
        return self.mu * (y - self.c * x).square().sum() / 2

    @property
    def r(self) -> float:
        """b - c a: how far the upper level's own minimum is from the constraint."""
        return self.b - self.c * self.a

    @property
    def solution(self) -> tuple[float, float]:
        """The solution (x*, y*) of the bilevel problem."""
        x = (self.a + self.c * self.b) / (1 + self.c**2)
        return x, self.c * x

    def hypergradient(self, x: Tensor) -> Tensor:
        """The derivative of F(x) = f(x, c x), of the shape of x."""
        return x - self.a + self.c * (self.c * x - self.b)

    def penalised(self, gamma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Minimiser of f + gamma (g - v), and its lower-level gap.

        gamma: weights, any shape. Returns x, y and g - v of that shape: with
        D = 1 + gamma mu (1 + c^2), off by -c r / ((1 + c^2) D) and r / ((1 + c^2) D),
        gap mu r^2 / (2 D^2).
        """
        turn = 1 + self.c**2
        D = 1 + gamma * self.mu * turn
        x, y = self.solution
        off = self.r / (turn * D)
        return x - self.c * off, y + off, self.mu * self.r**2 / (2 * D**2)

    def restarted(self, gamma: Tensor, inner: int, inner_step: float) -> Tensor:
        """Where x of V-PBGD ends when w restarts at y, with T inner steps.

        gamma: weights, inf included; inner: T; inner_step: beta. Returns x of the
        shape of gamma, from q = (1 - beta mu)^T. Only q = 0 loses nothing.
        """
        count("inner (the number of inner steps T)", inner, least=0)
        q = (1 - inner_step * self.mu) ** inner
        turn = 1 + self.c**2 * (1 - q)
        share = self.c * (1 - q) * self.r
        return self.a + share / (1 / (gamma * self.mu) + turn)


# -- the toy problem of the paper ---------------------------------------------------


def toy_upper(x: Tensor, y: Tensor) -> Tensor:
    """f = cos(4y + 2) / (1 + exp(2 - 4x)) + log((4x - 2)^2 + 1) / 2, summed.

    x, y: of one shape (independent problems). Source: 2302.05185, code (toy.py).
    """
    wave = torch.cos(4 * y + 2) * torch.sigmoid(4 * x - 2)
    return (wave + torch.log((4 * x - 2).square() + 1) / 2).sum()


def toy_lower(x: Tensor, y: Tensor) -> Tensor:
    """g = (x + y)^2 + x sin^2(x + y), summed; S(x) = {-x} and v = 0 for 0 <= x <= 3.

    x, y: of one shape. Source: 2302.05185, code (toy.py).
    """
    return ((x + y).square() + x * torch.sin(x + y).square()).sum()


def toy_slope(x: Tensor, y: Tensor, public: bool = False) -> Tensor:
    """The derivative of `toy_upper` in x by hand; public: as in the authors' script.

    x, y: of one shape; public: square exp(2 - 4x) instead of 1 + exp(2 - 4x) in the
    denominator, which is wrong. Returns that shape. Source: 2302.05185, code (toy.py).
    """
    e = torch.exp(2 - 4 * x)
    below = 1 + e.square() if public else (1 + e).square()
    rest = (16 * x - 8) / ((4 * x - 2).square() + 1)
    return 4 * e * torch.cos(4 * y + 2) / below + rest


def toy_points(grid: int = 20_001) -> tuple[Tensor, Tensor]:
    """The stationary (KKT) points of F(x) = f(x, -x) on [0, 3].

    grid: where a change of sign is looked for; each is refined by bisection. Returns
    the points (n,), ends of the box included where F falls outwards, and whether each
    is a local minimum (n,). Source: derived here.
    """
    slope = grad(lambda x: toy_upper(x, -x))
    low, high = TOY_BOX
    x = torch.linspace(low, high, grid, dtype=torch.float64)
    s = slope(x)
    turns = (s[:-1] * s[1:] < 0).nonzero()[:, 0]
    left, right = x[turns], x[turns + 1]
    for _ in range(60):
        middle = (left + right) / 2
        same = slope(middle) * s[turns] > 0
        left, right = torch.where(same, middle, left), torch.where(same, right, middle)
    points, least = [left], [s[turns] < 0]
    for end, kept in ((low, s[0] > 0), (high, s[-1] < 0)):
        if kept:  # F falls outwards, the box stops it
            points.append(torch.tensor([end], dtype=torch.float64))
            least.append(torch.tensor([True]))
    order = torch.cat(points).argsort()
    return torch.cat(points)[order], torch.cat(least)[order]


# -- quadratic sources --------------------------------------------------------------


@dataclass(frozen=True)
class Sources:
    """M quadratic sources L_i = (theta - c_i)' H_i (theta - c_i) / 2.

    H: (M, n, n), symmetric and positive; c: (M, n). Source: derived here.
    """

    H: Tensor
    c: Tensor

    @classmethod
    def draw(
        cls, M: int, n: int, seed: int, low: float = 0.5, high: float = 2.0
    ) -> Sources:
        """Random sources with eigenvalues evenly drawn from [low, high].

        M: sources; n: parameters; seed. Raises ValueError for counts and the range.
        """
        count("M (the number of sources)", M)
        count("n (the number of parameters)", n)
        need(0 < low <= high, f"the eigenvalues lie in [{low}, {high}]; give 0 < low.")
        g = torch.Generator().manual_seed(seed)
        normal = torch.randn(M, n, n, generator=g, dtype=torch.float64)
        Q = torch.linalg.qr(normal)[0]
        lam = low + (high - low) * torch.rand(M, n, generator=g, dtype=torch.float64)
        H = Q @ torch.diag_embed(lam) @ Q.mT
        c = torch.randn(M, n, generator=g, dtype=torch.float64)
        return cls((H + H.mT) / 2, c)

    def losses(self, each: int) -> list[list[Callable[[Tensor], Tensor]]]:
        """Every source's loss `each` times: K + 1 for K inner steps and the outer."""
        count("each (losses of a source)", each)

        def loss(i: int) -> Callable[[Tensor], Tensor]:
            return lambda t: (t - self.c[i]) @ self.H[i] @ (t - self.c[i]) / 2

        return [[loss(i)] * each for i in range(len(self.c))]

    def weights(self, kind: str, alpha: float, K: int) -> Tensor:
        """W_i of the gradient (1/M) sum_i W_i (theta - c_i): (M, n, n).

        kind: "mixing" H_i, "exact" H_i (I - alpha H_i)^2K, "first_order" the same with
        power K, "reptile" (I - (I - alpha H_i)^K) / (alpha K); alpha: inner rate; K:
        inner steps. Raises ValueError for the kind, or Reptile without a step.
        """
        choice("kind", kind, KINDS)
        count("K (the number of inner steps)", K, least=int(kind == "reptile"))
        eye = torch.eye(self.H.shape[-1], dtype=self.H.dtype)
        shrink = eye - alpha * self.H
        if kind == "reptile":
            return (eye - torch.linalg.matrix_power(shrink, K)) / (alpha * K)
        power = {"mixing": 0, "first_order": K, "exact": 2 * K}[kind]
        return self.H @ torch.linalg.matrix_power(shrink, power)

    def gradient(self, theta: Tensor, kind: str, alpha: float, K: int) -> Tensor:
        """The direction of a method at theta: (n,); arguments as in `weights`."""
        W = self.weights(kind, alpha, K)
        return torch.einsum("mij,mj->i", W, theta - self.c) / len(self.c)

    def stays(self, kind: str, alpha: float, K: int) -> Tensor:
        """The fixed point (sum W_i)^-1 sum W_i c_i: (n,); arguments as in `weights`."""
        W = self.weights(kind, alpha, K)
        return torch.linalg.solve(W.sum(0), torch.einsum("mij,mj->i", W, self.c))

    def adapted_loss(self, theta: Tensor, alpha: float, K: int) -> Tensor:
        """J(theta) = (1/M) sum_i L_i after K inner steps of rate alpha: a number."""
        W = self.weights("exact", alpha, K)
        off = theta - self.c
        return torch.einsum("mi,mij,mj->", off, W, off) / (2 * len(self.c))


# -- weights of training samples ----------------------------------------------------


@dataclass(frozen=True)
class Cleaning:
    """Hyper-cleaning of a regression: which training samples are worth their weight?

    f(x, y) = |A_v y - t_v|^2 / (2m) on clean validation samples, y = argmin g(x, .),
    g = sum_i x_i (A_i y - t_i)^2 / (2n) + ridge |y|^2 / 2, weights x in [0, 1]^n.
    A: (n, d); t: (n,); A_v: (m, d); t_v: (m,); clean: (n,) True where t_i was kept.
    Source: after 2302.05185, data hyper-cleaning; least squares, so that y*(x) and the
    hypergradient are known.
    """

    A: Tensor
    t: Tensor
    A_v: Tensor
    t_v: Tensor
    clean: Tensor
    ridge: float = 0.05

    @classmethod
    def draw(
        cls, seed: int, n: int = 40, m: int = 40, d: int = 6, share: float = 0.3
    ) -> Cleaning:
        """A random problem: a share of the training targets is another number.

        seed; n, m: training and validation samples; d: features; share: corrupted.
        Raises ValueError for counts and the share.
        """
        for name, size in (("n", n), ("m", m), ("d", d)):
            count(name, size)
        need(0 <= share < 1, f"share is {share}; give a number from 0 to below 1.")
        g = torch.Generator().manual_seed(seed)
        wide = {"generator": g, "dtype": torch.float64}
        truth = torch.randn(d, **wide)
        A, A_v = torch.randn(n, d, **wide), torch.randn(m, d, **wide)
        t = A @ truth + 0.1 * torch.randn(n, **wide)
        t_v = A_v @ truth + 0.1 * torch.randn(m, **wide)
        clean = torch.ones(n, dtype=torch.bool)
        clean[torch.randperm(n, generator=g)[: round(share * n)]] = False
        t = torch.where(clean, t, 3 * torch.randn(n, **wide))
        return cls(A, t, A_v, t_v, clean)

    def f(self, x: Tensor, y: Tensor) -> Tensor:
        """The upper level: validation error; x: (n,) is not in it; y: (d,)."""
        return (self.A_v @ y - self.t_v).square().mean() / 2 + 0 * x.sum()

    def g(self, x: Tensor, y: Tensor) -> Tensor:
        """The lower level: weighted training error with a ridge; x: (n,); y: (d,)."""
        errors = (self.A @ y - self.t).square()
        return (x * errors).mean() / 2 + self.ridge * y.square().sum() / 2

    def hessian(self, x: Tensor) -> Tensor:
        """grad_yy g at weights x: (d, d)."""
        eye = torch.eye(self.A.shape[1], dtype=self.A.dtype)
        return self.A.mT @ (x[:, None] * self.A) / len(self.t) + self.ridge * eye

    def respond(self, x: Tensor) -> Tensor:
        """y*(x), the exact solution of the lower level: (d,)."""
        return torch.linalg.solve(self.hessian(x), self.A.mT @ (x * self.t) / len(x))

    def value(self, x: Tensor) -> Tensor:
        """F(x) = f(x, y*(x)), a number."""
        return self.f(x, self.respond(x))

    def hypergradient(self, x: Tensor) -> Tensor:
        """The gradient of F in closed form: (n,)."""
        y = self.respond(x)
        fy = self.A_v.mT @ (self.A_v @ y - self.t_v) / len(self.t_v)
        v = torch.linalg.solve(self.hessian(x), fy)
        return -(self.A @ y - self.t) * (self.A @ v) / len(x)

    def solve(self, start: float = 0.5) -> tuple[Tensor, float]:
        """Weights and F at a local solution, by L-BFGS-B with the exact hypergradient.

        start: every weight's first value. Returns x (n,) and F(x).
        """
        from scipy.optimize import minimize

        def both(x: np.ndarray) -> tuple[float, np.ndarray]:
            x = torch.from_numpy(x)
            return float(self.value(x)), self.hypergradient(x).numpy()

        n = len(self.t)
        options = {"maxiter": 2000, "ftol": 1e-15, "gtol": 1e-10}
        best = minimize(
            both,
            np.full(n, start),
            jac=True,
            method="L-BFGS-B",
            bounds=[(0, 1)] * n,
            options=options,
        )
        return torch.from_numpy(best.x), float(best.fun)
