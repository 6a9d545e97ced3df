"""A decoder-only transformer as it is trained: RMSNorm, RoPE, SwiGLU, a tied head.

Every layer's output can be read by the same head (early exit), and a layer can be left
out for some sequences of a batch (layer dropout). `decoding.Decoder` runs the same
weights with a cache. Sources: 1706.03762; 1910.07467 (RMSNorm); 2104.09864 (RoPE);
2002.05202 (SwiGLU); 2404.16710 (LayerSkip: one head for all exits).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from lib.kit.checks import count, need

EPS = 1e-6  # of all norms
START_STD = 0.02


@dataclass(frozen=True)
class Sizes:
    """What a transformer is made of.

    vocab: tokens known; d: width; layers; heads: d / heads must be even; hidden: of the
    MLP, None for 2.625 d; max_len: tokens of context; theta: base of the rotations.
    """

    vocab: int = 1024
    d: int = 256
    layers: int = 8
    heads: int = 4
    hidden: int | None = None
    max_len: int = 1024
    theta: float = 10000.0

    def __post_init__(self) -> None:
        for name in ("vocab", "d", "layers", "heads", "max_len"):
            count(name, getattr(self, name))
        need(
            self.d % (2 * self.heads) == 0,
            f"d is {self.d} with {self.heads} heads; give a multiple of "
            f"{2 * self.heads}, because RoPE turns pairs of numbers.",
        )
        if self.hidden is None:
            object.__setattr__(self, "hidden", 21 * self.d // 8)
        count("hidden", self.hidden)

    @property
    def width(self) -> int:
        """Numbers in one head."""
        return self.d // self.heads


# -- rotary positions -----------------------------------------------------------------


@lru_cache(maxsize=16)
def turns(
    length: int,
    width: int,
    theta: float,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """exp(i t theta^(-2j / width)) for every position t and pair j.

    length: positions; width: of a head; theta: base; dtype: of the model. Returns
    (length, width / 2) complex. Source: 2104.09864, equation 15.
    """
    with torch.inference_mode(False):  # training and decoding share it
        pair = torch.arange(0, width, 2, dtype=torch.float64) / width
        angle = torch.arange(length, dtype=torch.float64)[:, None] * theta**-pair
        kind = torch.complex128 if dtype == torch.float64 else torch.complex64
        return torch.polar(torch.ones_like(angle), angle).to(device, kind)


def turned(x: Tensor, turn: Tensor) -> Tensor:
    """Rotate each pair of numbers (x_2j, x_2j+1) by its position's angle.

    x: (..., width); turn: (..., width / 2) complex, broadcast. Returns the same shape.
    Source: 2104.09864, equation 34.
    """
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turn).flatten(-2)


# -- the model ------------------------------------------------------------------------


class Layer(nn.Module):
    """x + attention(norm(x)), then + MLP(norm(x)). sizes: of the model."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        d, hidden = sizes.d, sizes.hidden
        self.heads = sizes.heads
        self.attention_norm = nn.RMSNorm(d, EPS)
        self.qkv = nn.Linear(d, 3 * d, bias=False)
        self.out = nn.Linear(d, d, bias=False)
        self.mlp_norm = nn.RMSNorm(d, EPS)
        self.up = nn.Linear(d, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, d, bias=False)

    def forward(self, x: Tensor, turn: Tensor, keep: Tensor | None = None) -> Tensor:
        """x (batch, length, d) -> the same shape.

        turn: (length, width / 2) complex; keep: (batch,) 1 where the layer is applied
        and 0 where it is left out, None for everywhere.
        """
        share = 1.0 if keep is None else keep[:, None, None].to(x.dtype)
        x = x + share * self.attend(self.attention_norm(x), turn)
        gate, value = self.up(self.mlp_norm(x)).chunk(2, dim=-1)
        return x + share * self.down(functional.silu(gate) * value)

    def attend(self, x: Tensor, turn: Tensor) -> Tensor:
        """Causal attention over x (batch, length, d), positions from `turn`."""
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1)).transpose(1, 3)
        q, k, v = qkv.unbind(2)  # (batch, heads, length, width)
        if q.dtype in (torch.bfloat16, torch.float16):  # autocast: angles stay exact
            q, k = (turned(part.float(), turn).to(v.dtype) for part in (q, k))
        else:
            q, k = turned(q.contiguous(), turn), turned(k.contiguous(), turn)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).flatten(2))


class Transformer(nn.Module):
    """Tokens in, logits of the next token out.

    sizes: see `Sizes`; seed: of every weight. Weights start as N(0, 0.02^2), those that
    write into the residual stream divided by sqrt(2 layers).
    """

    def __init__(self, sizes: Sizes, seed: int = 0) -> None:
        super().__init__()
        self.sizes = sizes
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embedding = nn.Embedding(sizes.vocab, sizes.d)
            self.layers = nn.ModuleList(Layer(sizes) for _ in range(sizes.layers))
            self.norm = nn.RMSNorm(sizes.d, EPS)
            for name, weight in self.named_parameters():
                if weight.ndim == 2:
                    onto = name.endswith(("out.weight", "down.weight"))
                    shrink = (2 * sizes.layers) ** -0.5 if onto else 1.0
                    nn.init.normal_(weight, std=START_STD * shrink)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (batch, length) -> logits (batch, length, vocab) of what follows each.

        Raises ValueError for a text longer than the context.
        """
        return self.read(self.streams(tokens)[-1])

    def streams(self, tokens: Tensor, keep: Tensor | None = None) -> list[Tensor]:
        """The residual stream after every layer.

        tokens: (batch, length); keep: (layers, batch) 0 where a layer is left out for a
        sequence, else 1. Returns `layers` tensors (batch, length, d). Raises ValueError
        for tokens.
        """
        s = self.sizes
        check_tokens(tokens, s)
        x, streams = self.embedding(tokens), []
        table = turns(s.max_len, s.width, s.theta, x.dtype, x.device)
        turn = table[: tokens.shape[1]]
        for number, layer in enumerate(self.layers):
            x = layer(x, turn, None if keep is None else keep[number])
            streams.append(x)
        return streams

    def read(self, x: Tensor) -> Tensor:
        """Logits (..., vocab) of a stream (..., d): the head of every exit."""
        return functional.linear(self.norm(x), self.embedding.weight)

    @property
    def parameters_total(self) -> int:
        """How many numbers it has learnt."""
        return sum(p.numel() for p in self.parameters())

    def about(self) -> dict[str, int | float]:
        """Its sizes as plain data, from which `Sizes` is made again."""
        return asdict(self.sizes)


def check_tokens(tokens: Tensor, sizes: Sizes) -> None:
    """Raises ValueError for what is not (batch, length) of tokens in the context."""
    whole = tokens.ndim == 2 and not tokens.is_floating_point() and tokens.numel() > 0
    need(
        whole,
        f"tokens are {str(tokens.dtype).removeprefix('torch.')} of shape "
        f"{tuple(tokens.shape)}; give whole numbers of shape (batch, length).",
    )
    need(
        tokens.shape[1] <= sizes.max_len,
        f"The text has {tokens.shape[1]} tokens; the context of this model is "
        f"{sizes.max_len}. Give less.",
    )
    low, high = int(tokens.min()), int(tokens.max())
    need(
        low >= 0 and high < sizes.vocab,
        f"The tokens span {low} to {high}; this model knows 0 to {sizes.vocab - 1}.",
    )
