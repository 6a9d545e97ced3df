"""The Mamba and Mamba-2 blocks: project, convolve, scan, gate, project.

Both take x (batch, length, d_model) and keep, for each sequence, a `LayerState` of a
size that does not grow: the last inputs of the convolution and the state of the scan.
States are never changed in place, so an earlier one stays good to go back to.
Parameters are named as in the authors' modules; linear maps and convolutions draw from
torch's global generator: seed it before.
Sources: 2312.00752 (Mamba), 2405.21060 (Mamba-2), both with their authors' code.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from lib.kit.checks import choice, count, need
from lib.scan import dispatch, selective_scan, ssd, ssd_step, step
from lib.selective_ssm.products import linear, split_linear
from lib.ssm_init import init_mamba, init_mamba2
from lib.ssm_init.layers import convolve

SELECTED = ("delta", "B", "C")
FUSED_WIDTHS = (2, 3, 4)  # what the fused convolution is compiled for


class LayerState(NamedTuple):
    """What one block remembers of a sequence.

    conv: (batch, d_conv - 1, channels), the last inputs of the convolution; ssm:
    (batch, channels, d_state), for Mamba-2 (batch, heads, headdim, d_state).
    """

    conv: Tensor
    ssm: Tensor


# -- the short convolution ----------------------------------------------------------


def causal_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    initial: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """SiLU of a causal depthwise convolution.

    x: (batch, length, channels); weight: (channels, width), the last tap meets the
    present; bias: (channels,); initial: (batch, width - 1, channels), the inputs before
    the first, default 0; backend: "auto" takes the fused kernel of `lib.scan` where
    there is one (differentiable once), any other of its names but "cpu" torch's own
    convolution, with the same numbers. Returns (batch, length, channels). Raises
    nothing of its own. Source: 2312.00752, section 3.4.
    """
    if not x.numel():
        return x
    if _fused(x, weight, backend):
        from lib.scan import cpu

        return cpu.causal_conv(x, weight, bias, True, initial)
    before = weight.shape[1] - 1
    if initial is None:
        padded = functional.pad(x, (0, 0, before, 0))
    else:
        padded = torch.cat([initial.to(x.dtype), x], dim=1)
    y = functional.conv1d(
        padded.transpose(1, 2), weight.unsqueeze(1), bias, groups=len(weight)
    )
    return functional.silu(y.transpose(1, 2))


def _fused(x: Tensor, weight: Tensor, backend: str) -> bool:
    """Whether `lib.scan`'s fused convolution can serve, and is meant to."""
    wish = os.environ.get(dispatch.VARIABLE, "auto") if backend == "auto" else backend
    return (
        wish in ("auto", "cpu")
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and weight.shape[1] in FUSED_WIDTHS
        and dispatch.absent("cpu", "conv") is None
    )


# -- what both blocks share ---------------------------------------------------------


def _draw() -> np.random.Generator:
    """A numpy generator that follows from torch's global one: one seed for both."""
    return np.random.default_rng(int(torch.randint(2**62, ())))


def _sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        count(name, size)


class _Mixer(nn.Module):
    """The convolution and its state. `channels`: convolved ones; `shape`: of the
    scan's state without the batch."""

    conv1d: nn.Conv1d
    out_proj: nn.Linear
    channels: int
    shape: tuple[int, ...]
    backend: str

    def empty_state(self, batch: int) -> LayerState:
        """The state before the first token: zeros for `batch` sequences."""
        like = self.conv1d.weight
        before = like.shape[-1] - 1
        ssm = like.dtype if like.dtype == torch.float64 else torch.float32
        return LayerState(
            like.new_zeros(batch, before, self.channels),
            like.new_zeros(batch, *self.shape, dtype=ssm),
        )

    def check_state(self, state: LayerState, batch: int) -> None:
        """Raise ValueError when a state is another block's, or for other sequences."""
        before = self.conv1d.weight.shape[-1] - 1
        wanted = [(batch, before, self.channels), (batch, *self.shape)]
        found = [tuple(part.shape) for part in state]
        need(
            found == wanted,
            f"The state has shapes {found[0]} and {found[1]}, this block keeps "
            f"{wanted[0]} and {wanted[1]}: it belongs to another model, or to another "
            "number of sequences.",
        )

    def _out(self, y: Tensor) -> Tensor:
        return linear(y, self.out_proj.weight, self.out_proj.bias)

    def _convolve(self, x: Tensor, state: LayerState | None) -> tuple[Tensor, Tensor]:
        """x (batch, length, channels) convolved, and the last inputs to remember."""
        before = self.conv1d.weight.shape[-1] - 1
        initial = None if state is None else state.conv
        weight, bias = self.conv1d.weight.squeeze(1), self.conv1d.bias
        y = causal_conv(x, weight, bias, initial, self.backend)
        if x.shape[1] < before:
            past = x.new_zeros(len(x), before, x.shape[2]) if state is None else initial
            x = torch.cat([past, x], dim=1)
        return y, x[:, x.shape[1] - before :]

    def _convolve_one(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """One input x (batch, channels), the window's weighted sum, the new past."""
        window = torch.cat([past, x.unsqueeze(1)], dim=1)  # (batch, d_conv, channels)
        y = (window * self.conv1d.weight.squeeze(1).T).sum(dim=1)
        y = y if self.conv1d.bias is None else y + self.conv1d.bias
        return functional.silu(y), window[:, 1:]


# -- Mamba --------------------------------------------------------------------------


class Mamba(_Mixer):
    """Mamba: a diagonal state space model whose step, input and output maps the token
    chooses.

    d_model: width; d_state: states a channel, N; expand: channels / d_model; d_conv:
    width of the convolution; dt_rank: of the step's projection, default ceil(d_model /
    16); dt_range: of the steps at the start, one over the memory's length in tokens;
    selective: True, False, or which of "delta", "B", "C" follow the token: what does
    not is a parameter, (channels,) or (channels, N), as in the paper's Algorithm 1
    (S4); bias, conv_bias: of the projections and the convolution; backend: of the scan,
    see `lib.scan.selective_scan`. Raises ValueError for sizes and words.
    Source: 2312.00752 (Figure 3, Algorithm 2); initialisation: `init_mamba`.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        *,
        expand: int = 2,
        d_conv: int = 4,
        dt_rank: int | None = None,
        dt_range: tuple[float, float] = (1e-3, 1e-1),
        selective: bool | Collection[str] = True,
        bias: bool = False,
        conv_bias: bool = True,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        _sizes(d_model=d_model, d_state=d_state, expand=expand, d_conv=d_conv)
        rank = -(-d_model // 16) if dt_rank is None else dt_rank
        _sizes(dt_rank=rank)
        inner = expand * d_model
        self.channels, self.shape, self.backend = inner, (inner, d_state), backend
        self.selective = _selected(selective)
        self.widths = (rank, d_state, d_state)  # of delta, B, C in x_proj
        self.in_proj = nn.Linear(d_model, 2 * inner, bias)
        self.conv1d = nn.Conv1d(inner, inner, d_conv, groups=inner, bias=conv_bias)
        parts = [n for n, word in zip(self.widths, SELECTED) if word in self.selective]
        self.x_proj = nn.Linear(inner, sum(parts), bias=False) if parts else None
        self.dt_proj = nn.Linear(rank, inner)
        self.out_proj = nn.Linear(inner, d_model, bias)
        sizes = {"expand": expand, "dt_rank": rank, "dt_range": dt_range}
        self._start(init_mamba(d_model, d_state, rng=_draw(), **sizes))

    def _start(self, drawn: dict[str, np.ndarray]) -> None:
        """The authors' initialisation; S4D's (B = 1, C normal) where B, C are fixed."""
        start = {name: torch.tensor(x).float() for name, x in drawn.items()}
        self.A_log = nn.Parameter(start["A_log"])
        self.D = nn.Parameter(start["D"])
        self.dt_proj.weight.data = start["dt_proj.weight"]
        self.dt_proj.bias.data = start["dt_proj.bias"]
        if "B" not in self.selective:
            self.B = nn.Parameter(torch.ones(self.shape))
        if "C" not in self.selective:
            self.C = nn.Parameter(torch.randn(self.shape))
        if "delta" not in self.selective:
            self.dt_proj.weight.requires_grad_(False).zero_()

    def select(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The step before its bias and softplus, and the maps in and out.

        u: (..., channels). Returns delta (..., channels), B and C (..., N), each of
        these (channels, N) where the token does not choose it. Source: Algorithm 2.
        """
        widths = [n for n, w in zip(self.widths, SELECTED) if w in self.selective]
        parts = linear(u, self.x_proj.weight).split(widths, dim=-1) if widths else ()
        found = dict(zip((w for w in SELECTED if w in self.selective), parts))
        if "delta" in found:
            found["delta"] = linear(found["delta"], self.dt_proj.weight)
        else:
            found["delta"] = torch.zeros_like(u)
        return tuple(found[w] if w in found else getattr(self, w) for w in SELECTED)

    @property
    def A(self) -> Tensor:
        """The poles, (channels, N), all negative."""
        return -torch.exp(self.A_log.to(torch.promote_types(self.A_log.dtype, F32)))

    def forward(
        self, x: Tensor, state: LayerState | None = None, return_state: bool = False
    ) -> Tensor | tuple[Tensor, LayerState]:
        """x (batch, length, d_model) -> the same shape; with return_state also the
        state after the last token; state: the one to go on from."""
        u, z = split_linear(x, self.in_proj, [self.channels] * 2)
        u, conv = self._convolve(u, state)
        alone = state is None and not return_state and self.backend == "auto"
        if alone and not self.selective and x.numel():
            return self._out(self._fixed(u) * functional.silu(z))
        delta, B, C = self.select(u)
        y, ssm = selective_scan(
            *(u, delta, self.A, B, C, self.D, z, self.dt_proj.bias, True),
            initial_state=None if state is None else state.ssm,
            return_last_state=True,
            channel_last=True,
            backend=self.backend,
        )
        y = self._out(y)
        return (y, LayerState(conv, ssm)) if return_state else y

    def _fixed(self, u: Tensor) -> Tensor:
        """The scan of a system that no token changes: a convolution (2111.00396)."""
        delta = functional.softplus(self.dt_proj.bias)
        time = torch.arange(u.shape[1], device=u.device)
        decay = torch.exp((delta[:, None] * self.A).unsqueeze(1) * time[:, None])
        K = delta[:, None] * (decay @ (self.B * self.C).unsqueeze(-1)).squeeze(-1)
        return convolve(K, u) + self.D * u  # K: (channels, length)

    def step(self, x: Tensor, state: LayerState) -> tuple[Tensor, LayerState]:
        """One token: x (batch, d_model) -> the same shape, and the new state."""
        u, z = self.in_proj(x).chunk(2, dim=-1)
        u, conv = self._convolve_one(u, state.conv)
        delta, B, C = self.select(u)
        if "B" not in self.selective:
            B = B.expand(len(u), *B.shape)  # a group for each channel
        if "C" not in self.selective:
            C = C.expand(len(u), *C.shape)
        given = (delta, self.A, B, C, self.D, z, self.dt_proj.bias, True)
        y, ssm = step(state.ssm, u, *given)
        return self.out_proj(y), LayerState(conv, ssm)


F32 = torch.float32


def _selected(selective: bool | Collection[str]) -> tuple[str, ...]:
    if isinstance(selective, bool):
        return SELECTED if selective else ()
    words = [selective] if isinstance(selective, str) else list(selective)
    for word in words:
        choice("What the token chooses", word, SELECTED)
    return tuple(word for word in SELECTED if word in words)


# -- Mamba-2 ------------------------------------------------------------------------


class GatedNorm(nn.Module):
    """RMSNorm of y silu(z), group by group of the channels.

    channels: width; groups: divides it; eps: under the root. Source: 2405.21060.
    """

    def __init__(self, channels: int, groups: int = 1, eps: float = 1e-5) -> None:
        super().__init__()
        self.groups, self.eps = groups, eps
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, y: Tensor, z: Tensor) -> Tensor:
        """y, z: (..., channels) -> the same shape."""
        y = (y * functional.silu(z)).unflatten(-1, (self.groups, -1))
        y = functional.rms_norm(y, y.shape[-1:], eps=self.eps)
        return self.weight * y.flatten(-2)


class Mamba2(_Mixer):
    """Mamba-2: heads with one decay each, everything projected at once.

    d_model: width; d_state: states a channel, N; headdim: channels a head, divides
    expand * d_model; groups: of heads that share B and C; expand, d_conv, dt_range,
    bias, conv_bias, backend: as in `Mamba` (`lib.scan.ssd`); eps: of the norm. Raises
    ValueError for sizes.
    Source: 2405.21060 (Figure 6, section 7); initialisation: `init_mamba2`.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        *,
        headdim: int = 32,
        groups: int = 1,
        expand: int = 2,
        d_conv: int = 4,
        dt_range: tuple[float, float] = (1e-3, 1e-1),
        bias: bool = False,
        conv_bias: bool = True,
        backend: str = "auto",
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        _sizes(d_model=d_model, d_state=d_state, expand=expand, d_conv=d_conv)
        _sizes(headdim=headdim, groups=groups)
        sizes = {"expand": expand, "dt_range": dt_range}
        start = init_mamba2(d_model, headdim, rng=_draw(), **sizes)
        inner, heads = expand * d_model, len(start["D"])
        need(
            heads % groups == 0,
            f"groups is {groups}; it must divide the {heads} heads "
            f"(expand * d_model / headdim = {expand} * {d_model} / {headdim}).",
        )
        self.channels = inner + 2 * groups * d_state
        self.shape, self.backend = (heads, headdim, d_state), backend
        self.groups, self.inner = groups, inner
        self.in_proj = nn.Linear(d_model, inner + self.channels + heads, bias)
        self.conv1d = nn.Conv1d(
            self.channels, self.channels, d_conv, groups=self.channels, bias=conv_bias
        )
        for name, x in start.items():  # A_log, dt_bias, D: (heads,)
            setattr(self, name, nn.Parameter(torch.tensor(x).float()))
        self.norm = GatedNorm(inner, groups, eps)
        self.out_proj = nn.Linear(inner, d_model, bias)

    @property
    def A(self) -> Tensor:
        """One pole a head, (heads,), negative."""
        return -torch.exp(self.A_log.to(torch.promote_types(self.A_log.dtype, F32)))

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The gate z, what is convolved, and delta, of x (..., d_model)."""
        widths = [self.inner, self.channels, self.shape[0]]
        if x.ndim == 2:  # one token: a single small product
            return self.in_proj(x).split(widths, dim=-1)
        return split_linear(x, self.in_proj, widths)

    def select(self, xBC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (..., heads, headdim), B and C (..., groups, N) of what was convolved."""
        (heads, headdim, N), groups = self.shape, self.groups
        x, B, C = xBC.split([self.inner, groups * N, groups * N], dim=-1)
        B, C = (t.unflatten(-1, (groups, N)) for t in (B, C))
        return x.unflatten(-1, (heads, headdim)), B, C

    def forward(
        self, x: Tensor, state: LayerState | None = None, return_state: bool = False
    ) -> Tensor | tuple[Tensor, LayerState]:
        """x (batch, length, d_model) -> the same shape; with return_state also the
        state after the last token; state: the one to go on from."""
        z, xBC, delta = self._project(x)
        xBC, conv = self._convolve(xBC, state)
        x, B, C = self.select(xBC)
        y, ssm = ssd(
            *(x, delta, self.A, B, C, self.D, None, self.dt_bias, True),
            initial_state=None if state is None else state.ssm,
            return_last_state=True,
            backend=self.backend,
        )
        y = self._out(self.norm(y.flatten(-2), z))
        return (y, LayerState(conv, ssm)) if return_state else y

    def step(self, x: Tensor, state: LayerState) -> tuple[Tensor, LayerState]:
        """One token: x (batch, d_model) -> the same shape, and the new state."""
        z, xBC, delta = self._project(x)
        xBC, conv = self._convolve_one(xBC, state.conv)
        x, B, C = self.select(xBC)
        given = (delta, self.A, B, C, self.D, None, self.dt_bias, True)
        y, ssm = ssd_step(state.ssm, x, *given)
        return self.out_proj(self.norm(y.flatten(-2), z)), LayerState(conv, ssm)


BLOCKS = {"mamba": Mamba, "mamba2": Mamba2}
