"""MambaMixer: select tokens along time, then channels along the width.

A token mixer is a selective scan over time; a channel mixer is the same scan over the
transposed input, both ways, because channels have no order. Every mixer reads a
learned weighted sum of all earlier outputs. Source: 2403.19888; its LaTeX source (as
stored in a replication's repository) was read: the mixers' equations, the averaging and
its L (2L + 3) weights. Ours: sizes, a silu gate, one causal convolution a direction,
mean-square normalisation before each mixer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.kit.checks import count, need
from lib.scan import selective_scan


class S6(nn.Module):
    """One direction: silu(conv(linear x)) scanned with B, C and delta selected by x.

    features: channels of the scan; states: N; conv: taps of the causal convolution.
    Source: 2403.19888 (LaTeX source), the token mixer without its gate.
    """

    def __init__(self, features: int, states: int = 8, conv: int = 3):
        super().__init__()
        self.inner = nn.Linear(features, features)
        self.conv = nn.Conv1d(features, features, conv, groups=features)
        self.select = nn.Linear(features, 2 * states, bias=False)
        self.step = nn.Linear(features, features)
        nn.init.constant_(self.step.bias, -3.0)  # softplus(-3): steps near 0.05
        decay = torch.arange(1.0, states + 1).log().expand(features, -1)
        self.A_log = nn.Parameter(decay.clone())
        self.D = nn.Parameter(torch.ones(features))

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch, steps, features) to the same shape, causal along the steps."""
        past = F.pad(self.inner(x).transpose(1, 2), (self.conv.kernel_size[0] - 1, 0))
        u = F.silu(self.conv(past).transpose(1, 2))
        B, C = self.select(x).chunk(2, dim=-1)
        delta = F.softplus(self.step(x))
        A = -torch.exp(self.A_log)
        return selective_scan(u, delta, A, B, C, self.D, channel_last=True)


class SelectiveMixer(nn.Module):
    """S6 gated by an MLP of the same input, in one direction or both.

    features, states, conv: as `S6`; both: add flip(S6'(flip x)) with weights of its
    own, under the same gate. Raises ValueError for sizes. Source: 2403.19888 (LaTeX).
    """

    def __init__(self, features: int, states: int = 8, conv: int = 3, both=False):
        super().__init__()
        count("features", features)
        count("states", states)
        count("conv", conv)
        self.ahead = S6(features, states, conv)
        self.back = S6(features, states, conv) if both else None
        self.gate = nn.Linear(features, features)

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch, steps, features) to the same shape."""
        y = self.ahead(x)
        if self.back is not None:
            y = y + self.back(x.flip(1)).flip(1)
        return y * F.silu(self.gate(x))


def channel_mixer(length: int, states: int = 8, conv: int = 3) -> SelectiveMixer:
    """The mixer for transposed input: its steps are channels, its features are tokens.

    length: of the sequences, fixed, since its linear maps act along time; they also
    make it see the future. Use as mixer(x.transpose(1, 2)).transpose(1, 2). Raises
    ValueError for sizes. Source: 2403.19888 (LaTeX: Linear(x^T), two directions).
    """
    return SelectiveMixer(length, states, conv, both=True)


class MambaMixer(nn.Module):
    """Token and channel mixers in turns, each reading all that came before.

    channels, length: of the input; layers: pairs of mixers; states, conv: as `S6`.
    With y_T(0) = y_C(0) = x, layer l reads
    x_T(l) = sum_{i<l} alpha_li y_T(i) + sum_{i<l} beta_li y_C(i) and
    x_C(l) = sum_{i<=l} theta_li y_T(i) + sum_{i<l} gamma_li y_C(i);
    the weights start as a plain chain: x_T(l) = y_C(l-1), x_C(l) = y_T(l). Raises
    ValueError for sizes. Source: 2403.19888 (LaTeX source); the start is ours.
    """

    def __init__(self, channels: int, length: int, layers=2, states=8, conv=3):
        super().__init__()
        count("layers", layers)
        self.shape = (length, channels)
        each = range(1, layers + 1)
        self.token = nn.ModuleList(SelectiveMixer(channels, states, conv) for _ in each)
        self.channel = nn.ModuleList(channel_mixer(length, states, conv) for _ in each)

        def last(size: int) -> nn.Parameter:
            return nn.Parameter(torch.eye(size)[-1].clone())

        def none(size: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(size))

        self.alpha = nn.ParameterList(none(level) for level in each)
        self.beta = nn.ParameterList(last(level) for level in each)
        self.theta = nn.ParameterList(last(level + 1) for level in each)
        self.gamma = nn.ParameterList(none(level) for level in each)

    def weights(self) -> int:
        """How many averaging weights there are: layers (2 layers + 3)."""
        kinds = (self.alpha, self.beta, self.theta, self.gamma)
        return sum(weight.numel() for kind in kinds for weight in kind)

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch, length, channels) to the same shape: the last channel mixer's."""
        need(
            x.ndim == 3 and x.shape[1:] == self.shape,
            f"x is {tuple(x.shape)}; give (batch, {self.shape[0]}, {self.shape[1]}): "
            "the channel mixer's linear maps fix the length.",
        )
        tokens, channels = [x], [x]
        for level, (token, channel) in enumerate(zip(self.token, self.channel)):
            read = average(tokens, self.alpha[level])
            read = read + average(channels, self.beta[level])
            tokens.append(token(F.rms_norm(read, read.shape[-1:], eps=1e-5)))
            read = average(tokens, self.theta[level])
            read = read + average(channels, self.gamma[level])
            channels.append(
                channel(
                    F.rms_norm(read, read.shape[-1:], eps=1e-5).transpose(1, 2)
                ).transpose(1, 2)
            )
        return channels[-1]


def average(outputs: list[Tensor], weights: Tensor) -> Tensor:
    """The weighted sum of earlier outputs: list of (...) and (len(outputs),) to (...).

    Raises ValueError if their numbers differ. Source: 2403.19888 (LaTeX source).
    """
    need(
        weights.shape == (len(outputs),),
        f"weights is {tuple(weights.shape)} for {len(outputs)} outputs; give one each.",
    )
    return torch.einsum("i...,i->...", torch.stack(outputs), weights)
