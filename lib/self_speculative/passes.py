"""What all self-drafters share: the model they draft with, and passes beside the cache.

A draft pass over one token sees the committed tokens through the keys and values of the
*full* model and itself through its own. `Past` computes such passes for many positions
of a text at once, differentiably, so that one function scores skip sets, runs CLaSp's
dynamic programme and trains mask tokens. Source: specification, section 5.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from lib.kit.checks import need
from lib.language import Cache, Decoder, Transformer
from lib.language.transformer import Layer, turned, turns
from lib.speculative import Budget, NeuralTarget, Session, Tree
from lib.speculative.targets import rows_of

NOTHING = Tree()
HEADS = 1  # the axis of heads in keys and values


def own_model(session: Session) -> Decoder:
    """The decoder that judges, with which a self-drafter drafts too.

    Raises ValueError for a target that is no transformer of ours, or that keeps its
    state to itself (`decode_batch`).
    """
    need(
        isinstance(session.target, NeuralTarget),
        f"A self-drafter runs layers of the target; {type(session.target).__name__} "
        "has none that it could reach. Give a NeuralTarget.",
    )
    need(
        isinstance(session.state, Cache) and session.state.batch == 1,
        "A self-drafter writes into the target's own cache, of one text; decode text "
        "by text with `decode`.",
    )
    return session.target.model


def drawn(
    read: Callable[[int], np.ndarray],
    session: Session,
    budget: Budget,
    most: int,
    greedy: bool,
) -> Tree:
    """A chain of a reader of single tokens, shorter where it is unsure.

    read: called with the last committed token, then with each drafted one but the last,
    returns the logits (V,) after it; session; budget; most: tokens; greedy: the
    likeliest token and a fixed draft, in place of a drawn one.
    """
    fixed = greedy or session.warp.temperature == 0
    tokens: list[int] = []
    laws: list[np.ndarray] = []
    sure, last = 1.0, session.tokens[-1]
    while len(tokens) < most:
        law = session.warp(read(last))
        if budget.ends(sure, law):
            break
        last = int(law.argmax()) if fixed else session.dice.draw(law)
        sure *= float(law[last])
        tokens.append(last)
        laws.append(law)
    return Tree(tokens) if fixed else Tree(tokens, q=laws, drawn="iid")


def one(token: int, model: Decoder) -> Tensor:
    """A token as the (1, 1) that a pass reads."""
    return torch.tensor([[token]], device=model.device)


def last_row(logits: Tensor) -> np.ndarray:
    """Logits (1, n, V) of a pass -> those of its last row, (V,) numpy."""
    return rows_of(logits[0, -1])


def features(model: Decoder, tokens: Sequence[int], stop: int | None = None) -> Tensor:
    """The stream after `stop` layers (None: all) at every token, (n, d).

    Reads the text in a cache of its own. model; tokens: perhaps none. Raises ValueError
    for tokens beyond the context.
    """
    if len(tokens) == 0:
        return model.embedding.new_zeros(0, model.sizes.d)
    model.check(tokens)
    cache = model.cache(1, len(tokens))
    given = torch.tensor([list(tokens)], device=model.device)
    return model.extend(cache, given, stop=stop, read=False).hidden[0]


# -- rows beside a text that was read in full -----------------------------------------


class Past:
    """Keys and values of the full model, and which of them new rows see.

    keys, values: a tensor (batch, heads, T, width) a layer, keys turned; visible:
    (n, T + n) bool, which of the past and of the n new rows a new row sees; turn:
    (n, width / 2) complex, by the new rows' positions.
    """

    def __init__(
        self,
        model: Transformer,
        keys: Sequence[Tensor],
        values: Sequence[Tensor],
        visible: Tensor,
        turn: Tensor,
    ) -> None:
        self.model, self.keys, self.values = model, keys, values
        self.visible, self.turn = visible, turn

    def run(
        self, number: int, x: Tensor, attention: bool = True, mlp: bool = True
    ) -> Tensor:
        """One layer, or a half of it, over new rows x (times * batch, n, d)."""
        layer = self.model.layers[number]
        if attention:
            x = x + self._attend(layer, number, layer.attention_norm(x))
        if mlp:
            gate, value = layer.up(layer.mlp_norm(x)).chunk(2, dim=-1)
            x = x + layer.down(functional.silu(gate) * value)
        return x

    def _attend(self, layer: Layer, number: int, x: Tensor) -> Tensor:
        past = (self.keys[number], self.values[number])
        times = len(x) // len(past[0])
        qkv = layer.qkv(x).unflatten(-1, (3, layer.heads, -1)).transpose(1, 3)
        q, k, v = qkv.unbind(2)  # (times * batch, heads, n, width)
        q, k = turned(q.contiguous(), self.turn), turned(k.contiguous(), self.turn)
        k, v = (
            torch.cat([old.repeat(times, 1, 1, 1), new], dim=2)
            for old, new in zip(past, (k, v))
        )
        y = functional.scaled_dot_product_attention(q, k, v, attn_mask=self.visible)
        return layer.out(y.transpose(1, 2).flatten(2))


def keys_of(
    model: Transformer, tokens: Tensor, streams: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Keys (turned) and values of every layer over a text that was read in full.

    tokens: (batch, T); streams: of `Transformer.streams`. Returns two lists of
    (batch, heads, T, width).
    """
    s, keys, values = model.sizes, [], []
    inputs = [model.embedding(tokens), *streams[:-1]]
    turn = turns(s.max_len, s.width, s.theta, inputs[0].dtype, inputs[0].device)
    for layer, x in zip(model.layers, inputs):
        part = layer.qkv(layer.attention_norm(x)).unflatten(-1, (3, s.heads, -1))
        _, k, v = part.transpose(1, 3).unbind(2)
        keys.append(turned(k.contiguous(), turn[: tokens.shape[1]]))
        values.append(v)
    return keys, values


def everywhere(model: Transformer, tokens: Tensor) -> tuple[Past, Tensor, list[Tensor]]:
    """A draft pass at every position of a text: each sees what stands before it.

    tokens: (batch, T). Returns the past (row t sees columns before t and itself), the
    embeddings (batch, T, d), and the full model's streams. Raises ValueError for
    tokens.
    """
    s, T = model.sizes, tokens.shape[1]
    streams = model.streams(tokens)
    keys, values = keys_of(model, tokens, streams)
    before = torch.ones(T, T, dtype=torch.bool, device=tokens.device).tril(-1)
    visible = torch.cat([before, torch.eye(T, dtype=torch.bool).to(before)], dim=1)
    x = model.embedding(tokens)
    turn = turns(s.max_len, s.width, s.theta, x.dtype, x.device)[:T]
    return Past(model, keys, values, visible, turn), x, streams
