"""A compact conformer: feed-forward, attention, convolution, feed-forward, three times.

`Conformer` maps frames x (batch, T, features) to the hidden states of every layer,
`Recogniser` puts one CTC output layer on it, if asked also in the middle
(self-conditioned CTC). Frames past an utterance's length reach no other frame: an
utterance gives the same numbers alone and padded in a batch. Parameters draw from
torch's global generator: seed it before.
Sources: 2005.08100 (conformer), 2505.08699 (block attention, self-conditioned CTC).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from lib.kit.checks import count, need

HIDDEN = -1e9  # added to the score of a key past the end; exp of it is 0
LEVELS = 1 << 16  # dropout compares 16 random bits with p, four units to a draw


def valid_frames(lengths: Tensor, T: int) -> Tensor:
    """True where a frame belongs to its utterance: (batch,) lengths to (batch, T).

    Raises ValueError for a length below 1 or above T.
    """
    least, most = int(lengths.min()), int(lengths.max())
    need(
        least >= 1 and most <= T,
        f"The lengths run from {least} to {most} frames and the batch holds {T}; give "
        "lengths from 1 to the number of frames.",
    )
    return torch.arange(T, device=lengths.device) < lengths[:, None]


@contextmanager
def without_dropout(*modules: nn.Module) -> Iterator[None]:
    """Dropout off inside `with`, and afterwards every module as it was.

    Unlike `eval()`, this cannot leak into the next step.
    """
    before = [(part, part.training) for m in modules for part in m.modules()]
    for part, _ in before:
        part.training = False
    try:
        yield
    finally:
        for part, training in before:
            part.training = training


def kept(like: Tensor, p: float, scale: float = 1.0) -> Tensor:
    """What dropout multiplies by: 0 with probability p, else scale / (1 - p).

    like: gives shape, device and type; p: to 16 bits. Draws from torch's global
    generator. Raises nothing.
    """
    draws = torch.empty(-(-like.numel() // 4), dtype=torch.int64, device=like.device)
    bits = draws.random_(-(2**63), None).view(torch.int16)[: like.numel()]
    stays = bits.view(like.shape) >= round(p * LEVELS) - LEVELS // 2
    return stays.to(like.dtype).mul_(scale / (1 - p))


class _Branch(nn.Module):
    """A residual branch x + scale dropout(f(LayerNorm(x)))."""

    scale = 1.0

    def __init__(self, d: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(d)
        self.dropout = dropout

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        if self.training and self.dropout:
            return torch.addcmul(x, y, kept(y, self.dropout, self.scale))
        return torch.add(x, y, alpha=self.scale)


class FeedForward(_Branch):
    """Half a feed-forward branch: x + 1/2 W2 SiLU(W1 LayerNorm(x)).

    d: channels; ff: the factor by which the middle is wider.
    """

    scale = 0.5

    def __init__(self, d: int, ff: int, dropout: float) -> None:
        super().__init__(d, dropout)
        self.up, self.down = nn.Linear(d, ff * d), nn.Linear(ff * d, d)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """x (batch, T, d) to the same shape."""
        return self.add(x, self.down(functional.silu(self.up(self.norm(x)))))


class Attention(_Branch):
    """Self-attention with a learned bias for every clipped distance and head.

    d: channels; heads; clip: distances beyond it share a bias; block: frames attend
    only inside blocks of so many (None: the whole utterance).
    """

    def __init__(
        self, d: int, heads: int, clip: int, block: int | None, dropout: float
    ) -> None:
        super().__init__(d, dropout)
        self.heads, self.clip, self.block = heads, clip, block
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.distance = nn.Parameter(torch.zeros(heads, 2 * clip + 1))

    def bias(self, T: int) -> Tensor:
        """The bias of key j for query i, table[j - i]: (heads, T, T)."""
        away = torch.arange(1 - T, T + 1, device=self.distance.device)
        row = self.distance[:, away.clamp(-self.clip, self.clip) + self.clip]
        # Rows of length 2T read with stride 2T - 1: each is the last one moved by one.
        long = row[:, None].expand(-1, T, -1).flatten(1)[:, : T * (2 * T - 1)]
        return long.view(-1, T, 2 * T - 1)[..., T - 1 :]

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """x (batch, T, d), valid (batch, T) or None to the same shape as x."""
        batch, T, d = x.shape
        S = min(self.block or T, T)  # frames that see one another
        blocks, extra = -(-T // S), -T % S
        y = self.norm(x)
        if extra:
            y = functional.pad(y, (0, 0, 0, extra))
            valid = x.new_ones(batch, T, dtype=torch.bool) if valid is None else valid
            valid = functional.pad(valid, (0, extra))
        shape = (batch * blocks, S, 3, self.heads, d // self.heads)
        q, k, v = self.qkv(y).view(shape).permute(2, 0, 3, 1, 4).flatten(1, 2)
        scores = self.bias(S).expand(batch * blocks, -1, -1, -1)
        if valid is not None:
            ends = (~valid).view(-1, 1, 1, S).to(x.dtype) * HIDDEN
            scores = scores + ends
        scores = scores.reshape(-1, S, S)
        scale = (d // self.heads) ** -0.5
        weights = torch.baddbmm(scores, q, k.transpose(1, 2), alpha=scale).softmax(-1)
        y = torch.bmm(weights, v).view(batch * blocks, self.heads, S, -1)
        y = y.transpose(1, 2).reshape(batch, T + extra, d)[:, :T]
        return self.add(x, self.out(y))


class Convolution(_Branch):
    """The convolution branch: GLU, depthwise over time, LayerNorm, SiLU, linear.

    d: channels; kernel: odd number of frames. LayerNorm stands where the paper has
    batch statistics, which would couple the utterances of a batch.
    """

    def __init__(self, d: int, kernel: int, dropout: float) -> None:
        super().__init__(d, dropout)
        self.gate, self.out = nn.Linear(d, 2 * d), nn.Linear(d, d)
        self.depthwise = nn.Conv1d(d, d, kernel, padding=kernel // 2, groups=d)
        self.inner = nn.LayerNorm(d)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """x (batch, T, d), valid (batch, T) or None to the same shape as x."""
        y = functional.glu(self.gate(self.norm(x)), dim=-1)
        if valid is not None:
            y = y * valid[..., None]
        # As an image of height 1 whose channels lie last: no copy, and much faster.
        weight, side = self.depthwise.weight[:, :, None], self.depthwise.padding[0]
        image = y.transpose(1, 2)[:, :, None]
        y = functional.conv2d(
            image, weight, self.depthwise.bias, padding=(0, side), groups=y.shape[-1]
        )
        y = functional.silu(self.inner(y[:, :, 0].transpose(1, 2)))
        return self.add(x, self.out(y))


class Conformer(nn.Module):
    """Linear and LayerNorm, then `blocks` conformer blocks: 762 k parameters as given.

    features: values a frame; d: channels; blocks; heads; ff: width of the feed-forward
    branches in d; kernel: frames of the convolution, odd; clip: largest distance with
    a bias of its own; dropout: on every branch; block: frames of an attention block,
    None for attention over the whole utterance. Raises ValueError for sizes.
    """

    def __init__(
        self,
        features: int = 80,
        d: int = 128,
        blocks: int = 3,
        heads: int = 4,
        ff: int = 2,
        kernel: int = 9,
        clip: int = 32,
        dropout: float = 0.1,
        block: int | None = None,
    ) -> None:
        super().__init__()
        sizes = {"features": features, "d": d, "blocks": blocks, "heads": heads}
        sizes |= {"ff": ff, "kernel": kernel, "clip": clip, "block": block or 1}
        for name, size in sizes.items():
            count(name, size)
        need(
            d % heads == 0, f"d is {d} and heads {heads}; give a d that heads divides."
        )
        need(kernel % 2 == 1, f"kernel is {kernel}; give an odd number of frames.")
        need(0 <= dropout < 1, f"dropout is {dropout}; give a probability below 1.")
        self.features, self.d = features, d
        self.input = nn.Sequential(nn.Linear(features, d), nn.LayerNorm(d))
        self.blocks = nn.ModuleList(
            nn.ModuleList(
                [
                    FeedForward(d, ff, dropout),
                    Attention(d, heads, clip, block, dropout),
                    Convolution(d, kernel, dropout),
                    FeedForward(d, ff, dropout),
                    nn.LayerNorm(d),
                ]
            )
            for _ in range(blocks)
        )

    def forward(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        depth: int | None = None,
        after: Callable[[int, Tensor], Tensor] | None = None,
    ) -> list[Tensor]:
        """The hidden states of every layer, zero past the lengths.

        x: (batch, T, features); lengths: (batch,), None for all T; depth: how many
        blocks to run, default all; after: called with the number of blocks done and
        their output, returns what the next block reads. Returns depth + 1 tensors
        (batch, T, d), first the input layer's. Raises ValueError for shapes.
        """
        depth = len(self.blocks) if depth is None else depth
        self._check(x, lengths, depth)
        valid = None
        if lengths is not None and int(lengths.min()) < x.shape[1]:
            valid = valid_frames(lengths, x.shape[1])
        h = self.input(x)
        hidden = [h if valid is None else h * valid[..., None]]
        for number, (*branches, norm) in enumerate(self.blocks[:depth], 1):
            h = hidden[-1]
            for branch in branches:
                h = branch(h, valid)
            h = norm(h)
            h = h if after is None else after(number, h)
            hidden.append(h if valid is None else h * valid[..., None])
        return hidden

    def _check(self, x: Tensor, lengths: Tensor | None, depth: int) -> None:
        need(
            x.dim() == 3 and x.shape[-1] == self.features and x.shape[1] > 0,
            f"The frames have shape {tuple(x.shape)}; give (batch, frames, "
            f"{self.features}) with at least one frame.",
        )
        need(
            0 <= depth <= len(self.blocks),
            f"depth is {depth}; the encoder has {len(self.blocks)} blocks.",
        )
        need(
            lengths is None or tuple(lengths.shape) == (len(x),),
            f"There are {len(x)} utterances and lengths of shape "
            f"{None if lengths is None else tuple(lengths.shape)}; give one each.",
        )
        if lengths is not None:
            valid_frames(lengths, x.shape[1])


class Recogniser(nn.Module):
    """An encoder with one CTC output layer, if asked conditioned on its own middle.

    encoder: whose states are read; symbols: without the blank, which is 0; conditioned:
    after block K // 2 the states become h + W_mid softmax(W_out h), with the W_out of
    the end and W_mid zero at first, so that training starts at the plain model.
    Raises ValueError for sizes. Source: 2505.08699 (Granite-speech).
    """

    def __init__(
        self, encoder: Conformer, symbols: int, conditioned: bool = False
    ) -> None:
        super().__init__()
        count("symbols", symbols)
        self.encoder, self.middle = encoder, len(encoder.blocks) // 2
        self.out = nn.Linear(encoder.d, symbols + 1)
        self.back = None
        if conditioned:
            need(self.middle > 0, "An encoder of one block has no middle; give two.")
            self.back = nn.Linear(symbols + 1, encoder.d, bias=False)
            nn.init.zeros_(self.back.weight)

    def forward(
        self, x: Tensor, lengths: Tensor | None = None, frozen: bool = False
    ) -> list[Tensor]:
        """Log-probabilities of the end and, where conditioned, of the middle.

        x: (batch, T, features); lengths: (batch,), None for all T; frozen: run the
        encoder without gradients (its dropout stays as it is). Returns one or two
        tensors (batch, T, symbols + 1). Raises ValueError for shapes.
        """
        seen: list[Tensor] = []

        def condition(number: int, h: Tensor) -> Tensor:
            if self.back is None or number != self.middle:
                return h
            seen.append(h)
            return h + self.back(self.out(h).softmax(-1))

        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            hidden = self.encoder(x, lengths, after=condition)
        return [self.out(h).log_softmax(-1) for h in (hidden[-1], *seen)]
