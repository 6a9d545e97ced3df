"""A real Mamba of several layers on the same prompts, with a switch for each part.

The theory's layer has no convolution, no SiLU gate, no norm and an exact (ZOH) input
step; Mamba's block has the first three and Euler's step. `DeepNet` builds either, and
the linear control, on the collection's selective scan, and `hidden_attention` reads
what a layer's last position takes from every example.
Sources: 2312.00752 (block), 2403.01590 (hidden attention), 2510.00399 (section 5).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from lib import scan
from lib.kit.checks import choice, count, need
from lib.mamba_icl.training import DATA, Divergence, hinge
from lib.mamba_icl.world import PatternWorld, Prompts, generator, sample_prompts

if TYPE_CHECKING:
    import pandas as pd

KINDS = ("mamba", "linear")
PARTS = {"conv": True, "gate": True, "norm": True, "discretization": "euler"}


class MambaLayer(nn.Module):
    """Mamba's block with switches: conv, gate (SiLU branch) and the input's step.

    width: of the stream; inner: channels of the scan; N: states a channel; conv: taps 4
    or none; gate: multiply by SiLU of a second branch; discretization: "euler" or
    "zoh". Forward: (B, L, width) to the same shape. Source: 2312.00752, Figure 3.
    """

    def __init__(
        self,
        width: int = 32,
        inner: int = 64,
        N: int = 16,
        conv: bool = True,
        gate: bool = True,
        discretization: str = "euler",
    ) -> None:
        super().__init__()
        choice("discretization", discretization, ("euler", "zoh"))
        self.rule, self.N, self.rank = discretization, N, max(1, width // 16)
        self.enter = nn.Linear(width, inner, bias=False)
        self.branch = nn.Linear(width, inner, bias=False) if gate else None
        self.conv = (
            nn.Conv1d(inner, inner, 4, padding=3, groups=inner) if conv else None
        )
        self.select = nn.Linear(inner, self.rank + 2 * N, bias=False)
        self.step = nn.Linear(self.rank, inner)
        steps = torch.exp(torch.linspace(np.log(1e-3), np.log(0.1), inner))
        with torch.no_grad():  # softplus(bias) is spread over Mamba's range of steps
            self.step.bias.copy_(steps + torch.log(-torch.expm1(-steps)))
        self.A_log = nn.Parameter(torch.arange(1.0, N + 1).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.leave = nn.Linear(inner, width, bias=False)

    def parts(self, x: Tensor) -> tuple[Tensor, ...]:
        """u, delta (B, L, inner), A (inner, N), B and C (B, L, N) of the scan."""
        u = self.enter(x)
        if self.conv is not None:
            u = self.conv(u.mT)[..., : x.shape[1]].mT
        u = functional.silu(u) if self.branch is not None else u
        dt, B, C = self.select(u).split([self.rank, self.N, self.N], -1)
        return u, functional.softplus(self.step(dt)), -self.A_log.exp(), B, C

    def forward(self, x: Tensor) -> Tensor:
        """The block's output: (B, L, width)."""
        u, delta, A, B, C = self.parts(x)
        y = scan.selective_scan(
            u, delta, A, B, C, self.D, discretization=self.rule, channel_last=True
        )
        return self.leave(y if self.branch is None else y * self._open(x))

    def _open(self, x: Tensor) -> Tensor:
        return functional.silu(self.branch(x))


class LinearLayer(nn.Module):
    """Causal linear attention, q k^T v / (L sqrt(width)), with an output map.

    width: of the stream. Forward: (B, L, width) to the same shape.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.q, self.k, self.v, self.leave = (
            nn.Linear(width, width, bias=False) for _ in range(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output: (B, L, width)."""
        weight = (self.q(x) @ self.k(x).mT).tril() / (x.shape[1] * x.shape[2] ** 0.5)
        return self.leave(weight @ self.v(x))


class DeepNet(nn.Module):
    """Embedding, layers with residual streams, and one number read at the query.

    d: input dimension; kind: "mamba" or "linear"; layers, width: sizes; norm: RMSNorm
    before every layer and the read-out; parts: switches of `MambaLayer`; seed: of the
    weights. Forward: P (B, l + 1, d + 1) to F (B,). Raises ValueError for sizes,
    kinds, and switches given to a linear layer.
    """

    def __init__(
        self,
        d: int,
        kind: str = "mamba",
        layers: int = 3,
        width: int = 32,
        norm: bool = True,
        seed: int = 0,
        **parts,
    ) -> None:
        super().__init__()
        choice("kind", kind, KINDS)
        count("layers", layers)
        need(
            kind == "mamba" or not parts,
            f"A linear layer has no {', '.join(parts)}: leave the switch out.",
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.enter = nn.Linear(d + 1, width)
            make = MambaLayer if kind == "mamba" else LinearLayer
            sizes = {"inner": 2 * width} if kind == "mamba" else {}
            self.layers = nn.ModuleList(
                make(width, **sizes, **parts) for _ in range(layers)
            )
            self.read = nn.Linear(width, 1)
        one = nn.RMSNorm if norm else lambda _: nn.Identity()
        self.norms = nn.ModuleList(one(width) for _ in range(layers + 1))

    def forward(self, P: Tensor) -> Tensor:
        """F of every prompt: (B, l + 1, d + 1) to (B,)."""
        return self.read(self.norms[-1](self.streams(P)[-1][:, -1]))[..., 0]

    def streams(self, P: Tensor) -> list[Tensor]:
        """The stream before every layer and after the last: (B, l + 1, width) each."""
        found = [self.enter(P)]
        for norm, layer in zip(self.norms, self.layers):
            found.append(found[-1] + layer(norm(found[-1])))
        return found


def train_deep(
    world: PatternWorld,
    *,
    steps: int = 600,
    batch: int = 64,
    l: int = 20,  # noqa: E741
    p_a: float = 0.4,
    lr: float = 3e-3,
    seed: int = 0,
    **net,
) -> tuple[DeepNet, list[float]]:
    """Train a `DeepNet` on the hinge loss of fresh prompts with AdamW, one cycle.

    steps, batch, l, p_a: as for `train_sgd`; lr: largest rate; seed: of weights and
    data; net: of `DeepNet`. Returns the net in eval mode and the loss of every step.
    Raises Divergence where the loss is not finite. The optimiser is ours: the paper's
    is not in its main text.
    """
    count("steps", steps)
    device = world.mu.device
    model = DeepNet(world.d, seed=seed, **net).to(**world.place)
    data = generator(seed, DATA, device=device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
    plan = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total_steps=steps + 1)
    losses = []
    for step in range(steps):
        prompts = sample_prompts(world, (batch,), l, generator=data, frac=p_a)
        loss = hinge(model(prompts.P), prompts.z)
        need(
            bool(loss.isfinite()),
            f"The {len(model.layers)}-layer net diverges at step {step} with lr = {lr}:"
            " take a smaller rate.",
            Divergence,
        )
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        plan.step()
        losses.append(float(loss.detach()))
    return model.eval(), losses


@torch.no_grad()
def error(model: DeepNet, prompts: Prompts, chunk: int = 1000) -> float:
    """Share of prompts on the wrong side: P of prompts (n, l + 1, d + 1)."""
    wrong = 0.0
    for P, z in zip(prompts.P.split(chunk), prompts.z.split(chunk)):
        wrong += float((model(P) * z < 0).double().sum())
    return wrong / len(prompts.z)


@torch.no_grad()
def hidden_attention(layer: MambaLayer, x: Tensor) -> dict[str, Tensor]:
    """What the last position of a layer takes from every position, over its channels.

    layer: a `MambaLayer`; x: (B, L, width), its normed input. Returns (B, L) tensors:
    "weight", the mean over channels of |C_t^T exp(A sum_{r>s} Delta_r) Bbar_s|;
    "decay", the mean of exp(A sum_{r>s} Delta_r); "write", the mean Delta_s.
    Source: 2403.01590, the attention behind a scan; its last row.
    """
    _, delta, A, B, C = layer.parts(x)
    later = delta.flip(1).cumsum(1).flip(1) - delta  # sum over r > s: (B, L, inner)
    decay = torch.exp(later[..., None] * A)  # (B, L, inner, N)
    gain = delta[..., None]
    if layer.rule == "zoh":
        gain = torch.expm1(delta[..., None] * A) / A
    weight = torch.einsum("bn,blcn,bln->blc", C[:, -1], decay * gain, B)
    means = {"weight": weight.abs().mean(-1), "decay": decay.mean((-1, -2))}
    return means | {"write": delta.mean(-1)}


@torch.no_grad()
def layer_groups(model: DeepNet, prompts: Prompts) -> pd.DataFrame:
    """Hidden attention of every layer by group of examples: one row each.

    model: of kind "mamba"; prompts: P (n, l + 1, d + 1). Returns layer (from 1), group
    (same, other, outlier; the first two clean), and mean weight, decay, write. Raises
    ValueError for a linear model.
    """
    import pandas as pd

    need(
        isinstance(model.layers[0], MambaLayer),
        "Only Mamba layers have a hidden attention; give a model of kind 'mamba'.",
    )
    clean = ~prompts.outlier
    masks = {
        "same": prompts.same & clean,
        "other": ~prompts.same & clean,
        "outlier": prompts.outlier,
    }
    rows = []
    for k, x in enumerate(model.streams(prompts.P)[:-1]):
        found = hidden_attention(model.layers[k], model.norms[k](x))
        for name, mask in masks.items():
            means = {key: float(v[:, :-1][mask].mean()) for key, v in found.items()}
            rows.append({"layer": k + 1, "group": name} | means)
    return pd.DataFrame(rows)
