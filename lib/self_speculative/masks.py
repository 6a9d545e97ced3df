"""S3D: mask tokens behind the last one, through a model without its middle layers.

One partial pass drafts several tokens: the last committed token's row guesses the next,
mask i the one i places further. The guesses do not know each other, so q of a path is a
product. Source: 2405.20314; specification, section 5.7.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lib.kit.checks import count, need
from lib.language import Skip, Transformer
from lib.language.transformer import turns
from lib.self_speculative.heads import Head, made
from lib.self_speculative.passes import NOTHING, Past, keys_of, one, own_model
from lib.self_speculative.skipping import check_skip, run_without
from lib.speculative import Budget, Out, Session, Tree, Verdict
from lib.speculative.targets import rows_of


def middle(layers: int, skipped: int) -> Skip:
    """Skip `skipped` layers in the middle, as many before as behind. Raises ValueError.

    An odd rest falls behind.
    """
    count("skipped", skipped, 0)
    need(
        skipped < layers,
        f"{skipped} layers are to be skipped of {layers}; keep at least one.",
    )
    begin = (layers - skipped) // 2
    return Skip.layers(range(begin, begin + skipped))


class Masks(Head):
    """Trainable mask embeddings, and a small residual map for each guess.

    Guess 0 is the last token's own row, guess i that of mask i; each stream x becomes x
    + silu(A_i norm(x)) with A_i = 0 at first, so that guess 0 untrained is the model
    without its middle. model; masks: how many; skipped: middle layers; seed: of the
    embeddings, drawn around the mean of the model's. Raises ValueError. Source:
    2405.20314 (its tuning is of the model; here the model stays frozen).
    """

    kind = "masks"

    def __init__(
        self, model: Transformer, masks: int = 3, skipped: int = 0, seed: int = 0
    ) -> None:
        count("masks", masks)
        super().__init__(model)
        self.skipped, self.skip = skipped, middle(model.sizes.layers, skipped)
        self.most = masks + 1
        words = model.embedding.weight.detach()
        noise = torch.randn(masks, self.d, generator=made(seed)).to(words)
        self.embeddings = nn.Parameter(words.mean(0) + words.std() * noise)
        self.mixes = nn.ParameterList(
            words.new_zeros(self.d, self.d) for _ in range(self.most)
        )

    def about(self) -> dict[str, Any]:
        """How many masks, and how many layers are left out."""
        return {"masks": self.most - 1, "skipped": self.skipped}

    def guess(self, model: Any, x: Tensor, i: int) -> Tensor:
        """Logits of guess i from its stream (..., d); model: with `read`."""
        u = functional.rms_norm(x, (self.d,))
        return model.read(x + functional.silu(functional.linear(u, self.mixes[i])))

    def aimed(
        self, model: Transformer, tokens: Tensor, streams: Sequence[Tensor]
    ) -> list[tuple[Tensor, Tensor]]:
        """Groups of rows (a token and the masks) at every `most`-th place of a text.

        Guess i of a group at place c aims at the law after token c + i. The past comes
        from the full model, as in decoding.
        """
        (batch, T), n, s = tokens.shape, self.most, model.sizes
        need(n <= T, f"The text has {T} tokens; {n} guesses need as many.")
        place = tokens.device
        cuts = torch.arange(0, T - n + 1, n, device=place)  # the groups' first places
        own = torch.arange(n, device=place)
        at = (cuts[:, None] + own).flatten()
        group = torch.arange(len(cuts), device=place).repeat_interleave(n)
        before = torch.arange(T, device=place) < cuts[group][:, None]
        same = group[:, None] == group
        within = same & (at[:, None] >= at)
        table = turns(s.max_len, s.width, s.theta, streams[0].dtype, place)
        keys, values = keys_of(model, tokens, streams)
        past = Past(model, keys, values, torch.cat([before, within], 1), table[at])
        first = model.embedding(tokens[:, cuts])[:, :, None]
        masks = self.embeddings.expand(batch, len(cuts), n - 1, -1)
        x = torch.cat([first, masks], dim=2).flatten(1, 2)
        x = run_without(past, x, self.skip).unflatten(1, (len(cuts), n))
        return [(self.guess(model, x[:, :, i], i), cuts + i) for i in range(n)]


class MaskDrafter:
    """Drafts up to 1 + masks tokens in one partial pass on the target's cache.

    masks; greedy: the likeliest tokens, a fixed draft, in place of drawn ones.
    """

    def __init__(self, masks: Masks, greedy: bool = False) -> None:
        self.masks, self.greedy = masks, greedy

    def start(self, session: Session) -> None:
        """Raises ValueError for another kind of target, or masks of another model."""
        self.session, self.model = session, own_model(session)
        self.masks.check(self.model.model)
        check_skip(self.masks.skip, self.model.sizes.layers)

    @torch.inference_mode()
    def propose(self, budget: Budget) -> Tree:
        """One pass over the last token and the masks."""
        session, n = self.session, min(budget.depth, budget.nodes, self.masks.most)
        if n <= 0:
            return NOTHING
        first = functional.embedding(
            one(session.tokens[-1], self.model), self.model.embedding
        )
        x = torch.cat([first, self.masks.embeddings[None, : n - 1]], dim=1)
        how = dict(skip=self.masks.skip, read=False)
        x = self.model.extend(session.state, None, x=x, **how).hidden[0]
        fixed = self.greedy or session.warp.temperature == 0
        tokens, laws, sure = [], [], 1.0
        for i in range(n):
            law = session.warp(rows_of(self.masks.guess(self.model, x[i], i)))
            if budget.ends(sure, law):
                break
            tokens.append(int(law.argmax()) if fixed else session.dice.draw(law))
            sure *= float(law[tokens[-1]])
            laws.append(law)
        return Tree(tokens) if fixed else Tree(tokens, q=laws, drawn="iid")

    def observe(self, tree: Tree, out: Out, verdict: Verdict) -> None:
        """Nothing to learn: verification has overwritten the masks' rows."""
