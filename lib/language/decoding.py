"""The same transformer with a cache: what one pass over a few tokens takes.

At a millisecond a pass every call shows. So the weights are looked up once, masks and
rotations are slices of tables, and nothing is concatenated. A pass reads the last
committed token and drafted nodes behind it (a chain or a tree), may stop at an early
exit, go on from one, or skip layers.
Sources: specification, sections 1 and 5; 2404.16710 (LayerSkip's cached activations).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from lib.kit.checkpoints import mixed
from lib.kit.checks import count, need
from lib.language.caches import Cache
from lib.language.transformer import EPS, Transformer, turned, turns
from lib.language.trees import Layout

LONGEST = 64  # rows of a chain whose mask is kept
CACHED = 4 << 20  # bytes of weights that stay in a processor's cache from pass to pass
FEW = 6  # rows up to which W x^T is read more quickly than x W^T


@dataclass(frozen=True)
class Skip:
    """Sub-layers that a pass leaves out: numbers of layers, from 0.

    attention, mlp: sets of layer numbers; `Skip.layers(...)` leaves out whole ones.
    """

    attention: frozenset[int] = frozenset()
    mlp: frozenset[int] = frozenset()

    @classmethod
    def layers(cls, numbers: Collection[int]) -> Skip:
        """Leave out both halves of some layers."""
        return cls(frozenset(numbers), frozenset(numbers))


@dataclass(frozen=True)
class Pass:
    """What a pass returns.

    logits: (batch, n, vocab), row i is the law after row i's token, or None; hidden:
    (batch, n, d), the stream after the last layer that ran, before the norm; streams:
    the stream before the first layer and after each, or None.
    """

    logits: Tensor | None
    hidden: Tensor
    streams: list[Tensor] | None = None


class Decoder:
    """A transformer's weights, ready for passes with a cache.

    model: whose weights it shares, so it sees them change; move or convert the model
    before. sizes, vocab, max_len, dtype, device: of the model.
    """

    def __init__(self, model: Transformer) -> None:
        self.model, self.sizes = model, model.sizes
        self.vocab, self.max_len = model.sizes.vocab, model.sizes.max_len
        self.embedding = model.embedding.weight.detach()
        self.norm = model.norm.weight.detach()
        self.dtype, self.device = self.embedding.dtype, self.embedding.device
        names = ("attention_norm", "qkv", "out", "mlp_norm", "up", "down")
        self.layers = [
            tuple(getattr(layer, name).weight.detach() for name in names)
            for layer in model.layers
        ]
        s = self.sizes
        self.table = turns(s.max_len, s.width, s.theta, self.dtype, self.device)
        held = sum(part.nbytes for part in [self.embedding, *sum(self.layers, ())])
        far = held > CACHED and self.device.type == "cpu"
        self.product = streamed if far else product
        self._masks: dict[int, Tensor] = {}

    def cache(self, batch: int = 1, room: int = 256) -> Cache:
        """An empty cache for `batch` sequences with room for so many rows at first."""
        s = self.sizes
        kind = dict(dtype=self.dtype, device=self.device)
        return Cache(
            s.layers, batch, s.heads, s.width, room=room, most=s.max_len, **kind
        )

    def start(self, prompts: Sequence[Sequence[int]], room: int = 256) -> Cache:
        """A cache that has read all but the last token of each prompt.

        prompts: one list of tokens a sequence, of any lengths; room: rows beyond the
        prompts. Raises ValueError for an empty or too long prompt, or its tokens.
        """
        need(len(prompts) > 0, "No prompts were given.")
        for prompt in prompts:
            self.check(prompt)
        longest = max(map(len, prompts))
        cache = self.cache(len(prompts), min(longest + room, self.max_len))
        if longest > 1:
            rows = [list(p[:-1]) + [0] * (longest - len(p)) for p in prompts]
            self.extend(cache, torch.tensor(rows, device=self.device), read=False)
            cache.rows = [len(p) - 1 for p in prompts]
        return cache

    def check(self, prompt: Sequence[int]) -> None:
        """Raises ValueError for a prompt that is empty, too long or of other tokens."""
        need(len(prompt) > 0, "The prompt is empty; give at least one token.")
        need(
            len(prompt) <= self.max_len,
            f"The prompt has {len(prompt)} tokens; the context of this model is "
            f"{self.max_len}. Cut it.",
        )
        low, high = min(prompt), max(prompt)
        need(
            low >= 0 and high < self.vocab,
            f"The prompt's tokens span {low} to {high}; this model knows 0 to "
            f"{self.vocab - 1}: is it of another tokenizer?",
        )

    # -- one pass ---------------------------------------------------------------------

    @torch.inference_mode()
    def extend(
        self,
        cache: Cache,
        tokens: Tensor | None,
        layout: Layout | None = None,
        *,
        behind: int = 0,
        start: int = 0,
        stop: int | None = None,
        x: Tensor | None = None,
        skip: Skip | None = None,
        streams: bool = False,
        read: bool = True,
    ) -> Pass:
        """Read n tokens of each sequence behind the committed rows, in one pass.

        cache: written behind its rows, which stay as they are: see `Cache.commit`;
        tokens: (batch, n), the last committed token and the drafted nodes, padded where
        a sequence has fewer; layout: None for a chain, or a tree's; behind: rows of
        earlier passes behind the committed ones that this one goes on from (a layout
        has their columns first); start, stop: run layers start .. stop - 1, so that
        stop is an early exit; x: (batch, n, d), the stream to go on with from `start`,
        in place of tokens; skip: sub-layers left out; streams: return them all; read:
        whether logits are wanted. Raises ValueError beyond the context or for a range.
        What is returned are inference tensors: clone them to train on.
        """
        stop = self.sizes.layers if stop is None else stop
        need(
            0 <= start <= stop <= self.sizes.layers,
            f"Layers {start} to {stop} were asked for; the model has "
            f"{self.sizes.layers}.",
        )
        if x is None:
            need(tokens is not None and start == 0, "Give tokens, or x with a start.")
            x = functional.embedding(tokens, self.embedding)
        batch, n, d = x.shape
        need(
            batch == cache.batch,
            f"{batch} rows of tokens were given for a cache of {cache.batch}.",
        )
        cache.ensure(behind + n)
        place = self._place(cache, n, behind, layout)
        seen, x = [x] if streams else None, x.reshape(batch * n, d)
        for number in range(start, stop):
            weights, own = self.layers[number], cache.layers[number]
            if skip is None or number not in skip.attention:
                x = self._attend(x, weights, own, place)
            if skip is None or number not in skip.mlp:
                x = self._mlp(x, weights)
            if streams:
                seen.append(x.view(batch, n, d))
        x = x.view(batch, n, d)
        return Pass(self.read(x) if read else None, x, seen)

    @torch.inference_mode()
    def read(self, x: Tensor) -> Tensor:
        """Logits (..., vocab) of a stream (..., d)."""
        normed = functional.rms_norm(x, (x.shape[-1],), self.norm, EPS)
        return self.product(normed, self.embedding)

    def _attend(
        self, x: Tensor, weights: tuple, own: tuple[Tensor, Tensor], place: Place
    ) -> Tensor:
        """x (batch n, d) + attention over the cache, into which n rows are written."""
        s, (norm, qkv, out, *_) = self.sizes, weights
        y = self.product(functional.rms_norm(x, (s.d,), norm, EPS), qkv)
        y = y.view(place.batch, place.n, 3 * s.heads, s.width)
        # Queries and keys are turned at once: (batch, n, 2 heads, width).
        qk = turned(y[:, :, : 2 * s.heads], place.turn).transpose(1, 2)
        k, v = place.write(
            own, qk[:, s.heads :], y[:, :, 2 * s.heads :].transpose(1, 2)
        )
        y = functional.scaled_dot_product_attention(
            qk[:, : s.heads], k, v, attn_mask=place.mask, is_causal=place.causal
        )
        return self.product(y.transpose(1, 2).reshape(x.shape), out, x)

    def _mlp(self, x: Tensor, weights: tuple) -> Tensor:
        *_, norm, up, down = weights
        y = self.product(functional.rms_norm(x, (self.sizes.d,), norm, EPS), up)
        gate, value = y.chunk(2, dim=-1)
        return self.product(functional.silu(gate).mul_(value), down, x)

    # -- where the rows go and what they see ------------------------------------------

    def _place(self, cache: Cache, n: int, behind: int, layout: Layout | None) -> Place:
        rows = cache.rows
        one = rows[0] if len(set(rows)) == 1 else None
        if one is None or (layout is not None and layout.depth.ndim == 2):
            return self._ragged(rows, n, behind, layout)
        begin, end = one + behind, one + behind + n
        place = Place(cache.batch, n, begin, end)
        if layout is None:
            place.turn = self.table[begin:end].unsqueeze(1)
            place.causal = begin == 0 and n > 1
            if begin > 0 and n > 1:
                place.mask = self._chain(n)[:, self.max_len - begin :]
        else:
            _fits(layout, n, behind)
            place.turn = self.table[one + layout.depth].unsqueeze(1)
            place.mask = torch.zeros(n, end, dtype=self.dtype, device=self.device)
            place.mask[:, one:].masked_fill_(~layout.visible, -torch.inf)
        return place

    def _chain(self, n: int) -> Tensor:
        """(n, max_len + n): zeros, then -inf above the diagonal; slices are masks."""
        if n in self._masks:
            return self._masks[n]
        mask = torch.zeros(n, self.max_len + n, dtype=self.dtype, device=self.device)
        mask[:, self.max_len :].fill_(-torch.inf).triu_(1)
        if n <= LONGEST:
            self._masks[n] = mask
        return mask

    def _ragged(
        self, rows: list[int], n: int, behind: int, layout: Layout | None
    ) -> Place:
        """Every sequence at a place of its own; columns that it has not are masked."""
        at = torch.tensor(rows, device=self.device)[:, None]  # (batch, 1)
        step = torch.arange(n, device=self.device)
        end = max(rows) + behind + n
        place = Place(len(rows), n, index=at + behind + step)
        column = torch.arange(end, device=self.device) - at  # 0 is the first new row
        if layout is None:
            seen = column[:, None] <= (behind + step)[:, None]
            place.turn = self.table[place.index].unsqueeze(2)
        else:
            _fits(layout, n, behind)
            depth = layout.depth.expand(len(rows), n)
            place.turn = self.table[at + depth].unsqueeze(2)
            wide = layout.visible.expand(len(rows), n, behind + n)
            inside = column.clamp(0, behind + n - 1)[:, None].expand(-1, n, -1)
            seen = wide.gather(2, inside) & (column < behind + n)[:, None]
            seen |= (column < 0)[:, None]
        mask = torch.zeros(len(rows), 1, n, end, dtype=self.dtype, device=self.device)
        place.mask = mask.masked_fill_(~seen[:, None], -torch.inf)
        place.end = end
        return place


def product(x: Tensor, weight: Tensor, more: Tensor | None = None) -> Tensor:
    """x W^T, or more + x W^T.

    x: (..., d), or (n, d) with more (n, e); weight: (e, d). Returns (..., e).
    """
    if more is None:
        return functional.linear(x, weight)
    return torch.addmm(more, x, weight.t())


def streamed(x: Tensor, weight: Tensor, more: Tensor | None = None) -> Tensor:
    """As `product`, for weights that every pass fetches from memory anew.

    For up to six rows a processor's matrix product reads W once in W x^T, and more than
    once, or slowly, in x W^T; an even number of columns is no dearer than the odd one
    before it. So one row and three get a row of zeros.
    """
    rows = x.numel() // x.shape[-1]
    if rows > FEW:
        return product(x, weight, more)
    flat = x.reshape(rows, -1)
    if rows in (1, 3):
        flat = functional.pad(flat, (0, 0, 0, 1))
    y = torch.mm(weight, flat.t()).t()[:rows]
    if more is not None:
        return more + y
    return y.contiguous().view(*x.shape[:-1], -1)


@dataclass
class Place:
    """Where a pass writes its rows, and what they see.

    batch, n: its size; begin, end: columns, the same for all; index: (batch, n) where
    they differ; turn: (n, 1, width / 2) or (batch, n, 1, width / 2); mask: added to the
    scores, or None; causal: the pass starts from nothing.
    """

    batch: int
    n: int
    begin: int = 0
    end: int = 0
    index: Tensor | None = None
    turn: Tensor | None = None
    mask: Tensor | None = None
    causal: bool = False

    def write(
        self, own: tuple[Tensor, Tensor], k: Tensor, v: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Put rows (batch, heads, n, width) into a layer; return all that are seen."""
        keys, values = own
        if self.index is None:
            keys[:, :, self.begin : self.end] = k
            values[:, :, self.begin : self.end] = v
        else:
            batch = torch.arange(self.batch, device=keys.device)[:, None]
            keys[batch, :, self.index] = k.transpose(1, 2)
            values[batch, :, self.index] = v.transpose(1, 2)
        return keys[:, :, : self.end], values[:, :, : self.end]


def _fits(layout: Layout, n: int, behind: int) -> None:
    need(
        layout.visible.shape[-2:] == (n, behind + n),
        f"The layout is of {layout.visible.shape[-2]} rows and "
        f"{layout.visible.shape[-1]} columns; the pass has {n} and {behind + n}.",
    )


# -- plain decoding -------------------------------------------------------------------


@torch.inference_mode()
def continued(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    most: int,
    *,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[list[int]]:
    """Continue prompts token by token: what every faster method is compared with.

    decoder; prompts: a list of tokens each, of any lengths; most: new tokens of each;
    temperature: 0 takes the likeliest token, the first of equals; seed: of the draws, a
    stream of its own for each prompt. Returns the new tokens of each. Raises ValueError
    for prompts, temperature, or a text longer than the context.
    """
    count("most", most, 0)
    need(temperature >= 0, f"temperature is {temperature}; give 0 or more.")
    cache = decoder.start(prompts, room=most)
    tokens = torch.tensor([[p[-1]] for p in prompts], device=decoder.device)
    streams = [
        torch.Generator().manual_seed(mixed(seed, b)) for b in range(len(prompts))
    ]
    drawn = []
    for _ in range(most):
        logits = decoder.extend(cache, tokens).logits[:, 0]
        for b in range(len(prompts)):
            cache.commit([], b)
        if temperature == 0:
            tokens = logits.argmax(dim=-1, keepdim=True)
        else:
            laws = torch.softmax(logits.double() / temperature, dim=-1).cpu()
            rows = [p.multinomial(1, generator=g) for p, g in zip(laws, streams)]
            tokens = torch.stack(rows).to(decoder.device)
        drawn.append(tokens)
    return torch.cat(drawn, dim=1).tolist() if drawn else [[] for _ in prompts]
