"""CLaSp: choose the skipped layers anew from the token that was just verified.

The streams of the last verified token say which layers moved it. A dynamic programme
picks layers whose result stays nearest, in cosine, to the full model's; it is greedy
inside (the best prefix need not lead to the best end), so it is compared with trying
all sets. Source: 2505.24196; specification, section 5.6.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lib.kit.checks import count, need
from lib.language import Cache, Decoder, Skip, Transformer
from lib.self_speculative.passes import Past, everywhere
from lib.self_speculative.skipping import (
    Judged,
    SkipDrafter,
    even,
    judged,
    run_without,
)
from lib.speculative import NeuralTarget, Out, Session, Tree, Verdict
from lib.speculative.targets import rows_of


class StreamTarget(NeuralTarget):
    """The full model, whose passes return the stream before and behind every layer.

    `hidden` of a pass is (n + 1, layers + 1, d). model: a `Decoder`.
    """

    exit = None  # no head can read this

    def __init__(self, model: Decoder) -> None:
        super().__init__(model, hidden=True)

    def forward(self, state: Any, last: int, tree: Tree) -> Out:
        """Logits after the last token and after every node, and all streams."""
        tokens = torch.tensor([[last, *tree.tokens]], device=self.model.device)
        shape = None if tree.parents is None else self._layout(tree)
        done = self.model.extend(state, tokens, shape, streams=True)
        streams = torch.stack([stream[0] for stream in done.streams], dim=1)
        return Out(rows_of(done.logits[0]), streams)


@dataclass(frozen=True)
class Chosen:
    """A skip choice for each of several tokens.

    skipped: (tokens, layers) bool; cosine: (tokens,) of its last stream with the full
    model's.
    """

    skipped: Tensor
    cosine: Tensor

    def skip(self, token: int = 0) -> Skip:
        """The choice for one token as a skip set."""
        return Skip.layers(self.skipped[token].nonzero().flatten().tolist())


@torch.inference_mode()
def clasp(past: Past, streams: Tensor, skipped: int) -> Chosen:
    """Skip sets of `skipped` layers by CLaSp's dynamic programme.

    D[l+1][j], with j layers skipped so far, is the nearer to h_{l+1} in cosine of
    layer_l(D[l][j]) and D[l][j-1]; choices are followed back from D[L][skipped]. past:
    of the tokens, one row each; streams: (tokens, layers + 1, d), h_0 .. h_L of the
    full model. Raises ValueError for more layers than there are. Source: 2505.24196
    (as the specification has it).
    """
    tokens, layers = streams.shape[0], streams.shape[1] - 1
    need(
        0 <= skipped < layers,
        f"{skipped} layers are to be skipped of {layers}; keep at least one.",
    )
    best, place = streams[None, :, 0], streams.device  # best: (j, tokens, d)
    left = torch.zeros(layers, skipped + 1, tokens, dtype=torch.bool, device=place)
    for number in range(layers):
        ran, aim = past.run(number, best), streams[:, number + 1]
        found = [ran[0]]
        for j in range(1, min(number + 1, skipped) + 1):
            stay = best[j - 1]
            run = ran[j] if j <= number else stay  # else all are left out so far
            out = (cosine(stay, aim) > cosine(run, aim)) | (j > number)
            left[number, j] = out
            found.append(torch.where(out[:, None], stay, run))
        best = torch.stack(found)
    return Chosen(_followed(left), cosine(best[skipped], streams[:, -1]))


def _followed(left: Tensor) -> Tensor:
    """The choices that led to the end: left (layers, skipped + 1, tokens) bool."""
    layers, most, tokens = left.shape
    j = torch.full((tokens,), most - 1, device=left.device)
    rows = []
    for number in reversed(range(layers)):
        out = left[number].gather(0, j[None])[0]
        rows.append(out)
        j = j - out.long()
    return torch.stack(rows[::-1], dim=1)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """The cosine of vectors (..., d)."""
    return functional.cosine_similarity(a, b, dim=-1)


@torch.inference_mode()
def best_of_all(past: Past, streams: Tensor, skipped: int) -> Chosen:
    """The skip set of `skipped` layers with the largest final cosine, by trying all.

    Arguments as of `clasp`; every token gets a choice of its own.
    """
    tokens, layers = streams.shape[0], streams.shape[1] - 1
    top = streams.new_full((tokens,), -2.0)
    best = torch.zeros(tokens, layers, dtype=torch.bool, device=streams.device)
    for chosen in itertools.combinations(range(layers), skipped):
        end = run_without(past, streams[None, :, 0], Skip.layers(chosen))[0]
        value = cosine(end, streams[:, -1])
        flags = torch.zeros_like(best[0])
        flags[list(chosen)] = True
        best = torch.where((value > top)[:, None], flags, best)
        top = torch.maximum(value, top)
    return Chosen(best, top)


def on_text(model: Transformer, tokens: Tensor) -> tuple[Past, Tensor]:
    """The past and streams (T, layers + 1, d) of every token of a text.

    tokens: (T,). What `clasp` and `best_of_all` read. Raises ValueError for tokens.
    """
    with torch.inference_mode():
        past, x, streams = everywhere(model, tokens[None])
        return past, torch.stack([x[0], *(part[0] for part in streams)], dim=1)


def on_token(model: Decoder, cache: Cache, row: int) -> Past:
    """The past of the one token whose row is `row`, from a decoder's cache."""
    seen = torch.ones(1, row + 1, dtype=torch.bool, device=model.device)
    keys, values = ([part[:, :, :row] for part in side] for side in zip(*cache.layers))
    return Past(model.model, keys, values, seen, model.table[row : row + 1])


@torch.inference_mode()
def judge_chosen(
    past: Past, streams: Tensor, chosen: Chosen, behind: int = 0
) -> Judged:
    """How good each token's own set is for the token `behind` places later.

    behind: 0 is hindsight (a set judged on the token that chose it), 1 is how CLaSp is
    used. past, streams: of `on_text`. Returns (1, T - behind) of overlap, agreement.
    """
    count("behind", behind, 0)
    T, layers = chosen.skipped.shape
    use = chosen.skipped[: T - behind]
    use = torch.cat([use[:1].expand(behind, -1), use])  # the first have no older set
    x = streams[None, :, 0]
    for number in range(layers):
        x = torch.where(use[None, :, number, None], x, past.run(number, x))
    p = torch.softmax(past.model.read(streams[None, :, -1]), dim=-1)
    found = judged(past.model, x, p)
    return Judged(found.overlap[:, behind:], found.agreement[:, behind:])


class ClaspDrafter(SkipDrafter):
    """Drafts without the layers that the last verified token needed least.

    skipped: layers left out; every: rounds between two choices; greedy. Needs a
    `StreamTarget`. A choice costs about a target pass over skipped + 1 tokens. Until
    the first pass, evenly spaced layers are left out. Source: 2505.24196.
    """

    def __init__(self, skipped: int, every: int = 1, greedy: bool = False) -> None:
        count("skipped", skipped)
        count("every", every)
        super().__init__(Skip(), greedy)
        self.skipped, self.every = skipped, every

    def start(self, session: Session) -> None:
        """Raises ValueError for another target, or for too many skipped layers."""
        need(
            isinstance(session.target, StreamTarget),
            "CLaSp reads the streams of verified tokens; give a StreamTarget.",
        )
        layers = session.target.model.sizes.layers
        need(
            self.skipped < layers,
            f"{self.skipped} layers are to be skipped of {layers}; keep at least one.",
        )
        self.skip, self.rounds = even(layers, layers - self.skipped), 0
        super().start(session)

    def observe(self, tree: Tree, out: Out, verdict: Verdict) -> None:
        """Choose again from the last verified token's streams."""
        self.rounds += 1
        if self.rounds % self.every:
            return
        row = self.session.target.rows(self.session.state) - 1
        past = on_token(self.model, self.session.state, row)
        place = verdict.path[-1] + 1 if verdict.path else 0
        self.skip = clasp(past, out.hidden[place][None], self.skipped).skip()
