"""Small networks on a frozen model that guess further ahead, and how they decode.

Position t has the stream h_t of the full model; the law after token t is law t. A head
says at which positions of the text's laws its guesses aim (`aimed`), so one loss and
one measure serve all of them and an index cannot be off by one in silence.
Sources: 2401.10774 (Medusa), 2401.15077 (EAGLE), 2403.09919 (recurrent drafter),
1811.03115 (blockwise); specification, section 5.8.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lib.kit.checks import count, need
from lib.language import Cache, Decoder, Transformer
from lib.language.training import token_loss
from lib.language.transformer import START_STD, Layer, turns

DECAY = 0.8  # weight of each further guess in the loss


class Head(nn.Module):
    """What all heads have: the width and tokens of their model, a loss, a card.

    model: which it is made for, and which stays frozen and outside; exit: layers that
    run before the head reads. kind, most (guesses at most, None for any) and `aimed`
    belong to each.
    """

    kind = ""
    most: int | None = None

    def __init__(self, model: Transformer, exit: int | None = None) -> None:
        super().__init__()
        self.d, self.vocab = model.sizes.d, model.sizes.vocab
        self.exit = model.sizes.layers if exit is None else exit

    def about(self) -> dict[str, Any]:
        """What makes it again, beside the model: arguments of the class."""
        return {}

    def aimed(
        self, model: Transformer, tokens: Tensor, streams: Sequence[Tensor]
    ) -> list[tuple[Tensor, Tensor]]:
        """Guesses over a text: pairs of logits (batch, m, V) and (m,) positions.

        The i-th pair is the (i + 1)-th guess of a draft; row r of its logits speaks of
        the law after token `positions[r]`. tokens: (batch, T); streams: of the model.
        """
        raise NotImplementedError

    def loss(
        self, model: Transformer, tokens: Tensor, streams: Sequence[Tensor], law: Tensor
    ) -> Tensor:
        """Cross-entropy with the model's laws (batch, T, V), 0.8^i for guess i."""
        total, weights = 0.0, 0.0
        for i, (logits, where) in enumerate(self.aimed(model, tokens, streams)):
            loss = token_loss(logits, where, law[:, where])
            total, weights = total + DECAY**i * loss, weights + DECAY**i
        return total / weights

    def check(self, model: Transformer) -> None:
        """Raises ValueError for a model of another width, vocabulary or depth."""
        own, s = (self.d, self.vocab), model.sizes
        need(
            own == (s.d, s.vocab) and self.exit <= s.layers,
            f"The head was made for width {self.d}, {self.vocab} tokens and exit "
            f"{self.exit}; the model has width {s.d}, {s.vocab} tokens and {s.layers} "
            "layers. Train a head for this model.",
        )

    @property
    def parameters_total(self) -> int:
        """How many numbers it adds to the model."""
        return sum(p.numel() for p in self.parameters())


class Drafts(Head):
    """A head that drafts behind the full model's last stream.

    `begin` makes a state, `hear` takes what was committed since, `say` a drafted token;
    the last two return logits (V,) of what comes next.
    """

    def begin(self, model: Decoder, room: int) -> Any:
        """A fresh state. room: tokens that are known already."""
        return SimpleNamespace()

    def hear(self, model: Decoder, state: Any, x: Tensor, tokens: Tensor) -> Tensor:
        """Streams x (m, d) of the last m tokens that have rows, tokens (m,) after each.

        The last of these tokens is the last committed one.
        """
        raise NotImplementedError

    def say(self, model: Decoder, state: Any, token: Tensor) -> Tensor:
        """A drafted token, (1,)."""
        raise NotImplementedError


def made(seed: int) -> torch.Generator:
    """The stream of a head's first weights."""
    return torch.Generator().manual_seed(seed)


# -- Medusa ---------------------------------------------------------------------------


class Medusa(Drafts):
    """k heads on one stream: head i at t guesses token t + 1 + i, i = 1 .. k.

    head_i(h) = W_i (u + silu(U_i u)), u the normed stream; W_i starts as the model's
    own head and U_i as 0, so an untrained head repeats the model's next token. Given h
    the guesses are independent: q of a path is the product. model; heads: k. Source:
    2401.10774; its greedy chain is 1811.03115's blockwise decoding.
    """

    kind = "medusa"

    def __init__(self, model: Transformer, heads: int = 4, seed: int = 0) -> None:
        count("heads", heads)
        super().__init__(model)
        self.most = heads
        own = model.embedding.weight.detach()
        self.embeddings = nn.ParameterList(own.clone() for _ in range(heads))
        self.mixes = nn.ParameterList(
            own.new_zeros(self.d, self.d) for _ in range(heads)
        )

    def about(self) -> dict[str, Any]:
        """Its number of heads."""
        return {"heads": self.most}

    def guess(self, u: Tensor, i: int) -> Tensor:
        """Logits of head i (1 .. k) at normed streams u (..., d)."""
        mixed = u + functional.silu(functional.linear(u, self.mixes[i - 1]))
        return functional.linear(mixed, self.embeddings[i - 1])

    def aimed(self, model, tokens, streams):
        """Head i at t aims at the law after token t + i."""
        u, T = model.norm(streams[-1]), tokens.shape[1]
        where = torch.arange(T, device=tokens.device)
        return [
            (self.guess(u[:, : T - i], i), where[i:])
            for i in range(1, min(self.most, T - 1) + 1)
        ]

    def hear(self, model, state, x, tokens):
        """The first head at the last stream."""
        state.u, state.i = model.model.norm(x[-1]), 1
        return self.guess(state.u, 1)

    def say(self, model, state, token):
        """The next head; it does not look at the token."""
        state.i += 1
        return self.guess(state.u, state.i)


# -- a recurrent drafter --------------------------------------------------------------


class Recurrent(Drafts):
    """A small recurrent state over the drafted tokens, on one stream of the model.

    s_i = silu(A s_{i-1} + B e(x_{t+i}) + b), logits = E (u + C silu(D [s_i; u])), e and
    E the model's embedding, u its normed stream at t; C starts as 0. model; unroll:
    guesses that are trained at each position. Source: 2403.09919 (greedy or drawn
    chain; its beam search is left out).
    """

    kind = "recurrent"

    def __init__(self, model: Transformer, unroll: int = 4, seed: int = 0) -> None:
        count("unroll", unroll)
        super().__init__(model)
        self.unroll, d = unroll, self.d
        self.old, self.new = nn.Linear(d, d, bias=False), nn.Linear(d, d)
        self.inner, self.outer = (
            nn.Linear(2 * d, d, bias=False),
            nn.Linear(d, d, bias=False),
        )
        for part in (self.old, self.new, self.inner):
            nn.init.normal_(part.weight, std=d**-0.5, generator=made(seed))
        nn.init.zeros_(self.new.bias)
        nn.init.zeros_(self.outer.weight)
        self.to(model.embedding.weight)

    def about(self) -> dict[str, Any]:
        """How far it is unrolled in training."""
        return {"unroll": self.unroll}

    def step(self, s: Tensor | None, e: Tensor) -> Tensor:
        """The state after one more token. s: (..., d) or None; e: its embedding."""
        return functional.silu(self.new(e) + (0 if s is None else self.old(s)))

    def guess(self, model: Transformer, s: Tensor, u: Tensor) -> Tensor:
        """Logits of what follows the tokens that the state has read."""
        more = self.outer(functional.silu(self.inner(torch.cat([s, u], dim=-1))))
        return functional.linear(u + more, model.embedding.weight)

    def aimed(self, model, tokens, streams):
        """The i-th guess at t has read tokens t + 1 .. t + i: it aims at law t + i."""
        u, e, T = model.norm(streams[-1]), model.embedding(tokens), tokens.shape[1]
        where, found, s = torch.arange(T, device=tokens.device), [], None
        for i in range(1, min(self.unroll, T - 1) + 1):
            s = self.step(None if s is None else s[:, : T - i], e[:, i:])
            found.append((self.guess(model, s, u[:, : T - i]), where[i:]))
        return found

    def hear(self, model, state, x, tokens):
        """A new state that has read the last committed token."""
        state.u = model.model.norm(x[-1])
        state.s = self.step(None, model.embedding[tokens[-1]])
        return self.guess(model.model, state.s, state.u)

    def say(self, model, state, token):
        """One step of the state."""
        state.s = self.step(state.s, model.embedding[token[0]])
        return self.guess(model.model, state.s, state.u)


# -- one layer of one's own -----------------------------------------------------------


@dataclass
class Own:
    """A head's one layer as a decoder with a cache, and rows behind the committed."""

    decoder: Decoder
    cache: Cache
    x: Tensor | None = None
    behind: int = 0


def layer_for(model: Transformer, seed: int) -> Layer:
    """A fresh layer of the model's shape."""
    layer = Layer(model.sizes)
    onto = (2 * model.sizes.layers) ** -0.5
    for name, weight in layer.named_parameters():
        if weight.ndim == 2:
            shrink = onto if name.startswith(("out", "down")) else 1.0
            nn.init.normal_(weight, std=START_STD * shrink, generator=made(seed))
            seed += 1
    return layer.to(model.embedding.weight)


def decoder_of(model: Transformer, layer: nn.Module, norm: nn.Module) -> Decoder:
    """The decoder of a single layer under a model's embedding and a norm.

    layer: its MLP may be missing; skip it then.
    """
    empty = SimpleNamespace(weight=torch.empty(0))
    names = ("attention_norm", "qkv", "out", "mlp_norm", "up", "down")
    parts = {name: getattr(layer, name, empty) for name in names}
    return Decoder(
        SimpleNamespace(
            sizes=replace(model.sizes, layers=1),
            embedding=model.embedding,
            norm=norm,
            layers=[SimpleNamespace(**parts)],
        )
    )


def positions(model: Transformer, x: Tensor) -> Tensor:
    """The rotations of x (batch, T, d) from the first position on."""
    s = model.sizes
    return turns(s.max_len, s.width, s.theta, x.dtype, x.device)[: x.shape[1]]


class Eagle(Drafts):
    """One decoder layer that guesses the model's next feature from this one's.

    f_t+1 = layer(F [u_t; e(x_{t+1})]) aims at u_{t+1}, the normed last stream, and E
    f_t+1 at the law after token t + 1; drafting goes on from its own f. F starts as the
    identity on u. Loss: regress x smooth L1 of features + classes x cross-entropy.
    model; regress, classes. Source: 2401.15077 (weights as recalled in the
    specification).
    """

    kind = "eagle"

    def __init__(
        self,
        model: Transformer,
        regress: float = 1.0,
        classes: float = 0.1,
        seed: int = 0,
    ) -> None:
        need(
            regress >= 0 and classes >= 0 and regress + classes > 0,
            f"regress is {regress} and classes {classes}; give weights, not both 0.",
        )
        super().__init__(model)
        self.regress, self.classes = regress, classes
        self.join = nn.Linear(2 * self.d, self.d, bias=False)
        self.layer = layer_for(model, seed + 1)
        nn.init.normal_(self.join.weight, std=self.d**-0.5, generator=made(seed))
        nn.init.eye_(self.join.weight[:, : self.d])
        self.to(model.embedding.weight)

    def about(self) -> dict[str, Any]:
        """The weights of its loss."""
        return {"regress": self.regress, "classes": self.classes}

    def features(self, model, tokens, streams):
        """The guessed features (batch, T - 1, d) of tokens 1 .. T - 1, and the true."""
        u = model.norm(streams[-1])
        x = self.join(torch.cat([u[:, :-1], model.embedding(tokens[:, 1:])], dim=-1))
        return self.layer(x, positions(model, x)), u[:, 1:]

    def aimed(self, model, tokens, streams):
        """From u_t and token t + 1 it aims at the law after token t + 1."""
        found, _ = self.features(model, tokens, streams)
        where = torch.arange(1, tokens.shape[1], device=tokens.device)
        return [(functional.linear(found, model.embedding.weight), where)]

    def loss(self, model, tokens, streams, law):
        """regress x smooth L1 + classes x cross-entropy with the model's laws."""
        found, true = self.features(model, tokens, streams)
        logits = functional.linear(found, model.embedding.weight)
        near = functional.smooth_l1_loss(found, true.to(found.dtype))
        entropy = token_loss(logits, tokens, law[:, 1:])
        return self.regress * near + self.classes * entropy

    def begin(self, model, room):
        """A cache of its own: row t is the pair (u_t, token t + 1)."""
        own = decoder_of(model.model, self.layer, model.model.norm)
        return Own(own, own.cache(1, min(room + 64, own.max_len)))

    def hear(self, model, state, x, tokens):
        """Pairs with true features become committed rows."""
        logits = self._pass(model, state, model.model.norm(x), tokens, 0)
        state.cache.rows[0] += len(x)
        state.behind = 0
        return logits

    def say(self, model, state, token):
        """A pair of a guessed feature and a drafted token, behind the committed."""
        state.behind += 1
        return self._pass(model, state, state.x, token, state.behind - 1)

    def _pass(self, model, state, u, tokens, behind):
        x = self.join(torch.cat([u, model.embedding[tokens]], dim=-1))[None]
        done = state.decoder.extend(state.cache, None, x=x, behind=behind, read=False)
        state.x = done.hidden[0, -1:]
        return functional.linear(state.x[0], model.embedding)


class Adapter(Head):
    """Kangaroo: an attention block behind an early exit, read by the model's head.

    y = norm(x + attention(norm(x))) with its own two norms and no MLP; attention starts
    as 0, so an untrained adapter is the bare exit. model; exit: layers that run. The
    drafter is `KangarooDrafter`. Source: 2404.18911 (form as recalled in the
    specification).
    """

    kind = "adapter"

    def __init__(self, model: Transformer, exit: int = 2, seed: int = 0) -> None:
        count("exit", exit)
        need(
            exit < model.sizes.layers,
            f"The exit is behind layer {exit}; the model has {model.sizes.layers}: "
            f"give 1 to {model.sizes.layers - 1}.",
        )
        super().__init__(model, exit)
        self.layer = layer_for(model, seed)
        del self.layer.mlp_norm, self.layer.up, self.layer.down
        nn.init.zeros_(self.layer.out.weight)
        self.norm = nn.RMSNorm(self.d, model.norm.eps)
        with torch.no_grad():
            self.norm.weight.copy_(model.norm.weight)
        self.to(model.embedding.weight)

    def about(self) -> dict[str, Any]:
        """Its exit."""
        return {"exit": self.exit}

    def aimed(self, model, tokens, streams):
        """At t it aims at the law after token t, as the full model does."""
        x = streams[self.exit - 1]
        y = self.layer.attend(self.layer.attention_norm(x), positions(model, x))
        logits = functional.linear(self.norm(x + y), model.embedding.weight)
        return [(logits, torch.arange(tokens.shape[1], device=tokens.device))]
