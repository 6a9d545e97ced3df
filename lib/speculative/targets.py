"""What can judge a draft, and draft itself: laws, our transformer, anyone's.

All obey the cache contract of `harness.Target`: behind `start` and every `commit` the
state has read all committed tokens but the last.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lib.kit.checks import count, need
from lib.language.decoding import Decoder
from lib.language.ngrams import Ngram
from lib.language.trees import Layout, path_to
from lib.language.trees import tree as layout_of
from lib.speculative.harness import Out, Tree

# -- laws: n-grams and tables, for exact work -----------------------------------------


@dataclass(slots=True)
class Text:
    """The state of a `LawTarget`: committed tokens but the last, and the last pass."""

    tokens: list[int]
    read: list[int] = field(default_factory=list)


class LawTarget:
    """A model given by its laws: law(context) -> (V,) float64 of the next token.

    law: a pure function of the context (a tuple of tokens); vocab: V; order: how many
    of the last tokens it looks at, None for all; max_len: context. Laws are kept by
    context once they are known.
    """

    def __init__(
        self,
        law: Callable[[tuple[int, ...]], np.ndarray],
        vocab: int,
        *,
        order: int | None = None,
        max_len: int = 10**9,
    ) -> None:
        count("vocab", vocab, 2)
        self.law, self.vocab, self.order, self.max_len = law, vocab, order, max_len
        self._logs: dict[Hashable, np.ndarray] = {}

    def start(self, prompt: Sequence[int], room: int = 0) -> Text:
        """A state that has read all but the last token. Raises ValueError."""
        _known(prompt, self.vocab)
        return Text(list(prompt[:-1]))

    def forward(self, state: Text, last: int, tree: Tree) -> Out:
        """Log-laws after the last token and after every node: (n + 1, V)."""
        text = [*state.tokens, last]
        state.read = [last, *tree.tokens]
        if tree.parents is None:
            paths = [list(tree.tokens[:k]) for k in range(len(tree) + 1)]
        else:
            paths = [[]] + [
                [tree.tokens[k] for k in path_to(tree.parents, node)]
                for node in range(len(tree))
            ]
        return Out(np.stack([self._log([*text, *path]) for path in paths]))

    def _log(self, context: list[int]) -> np.ndarray:
        if self.order is not None:
            context = context[max(len(context) - self.order, 0) :]
        key = tuple(context)
        if key not in self._logs:
            with np.errstate(divide="ignore"):
                self._logs[key] = np.log(self.law(key))
        return self._logs[key]

    def commit(self, state: Text, path: Sequence[int]) -> None:
        """Keep the last committed token and a path of nodes."""
        state.tokens += [state.read[0], *(state.read[node + 1] for node in path)]

    def crop(self, state: Text, rows: int) -> None:
        """Forget all behind the first rows."""
        del state.tokens[rows:]

    def rows(self, state: Text) -> int:
        """How many tokens it has read."""
        return len(state.tokens)


def table_law(
    vocab: int, seed: int = 0, spread: float = 1.0, order: int | None = None
) -> LawTarget:
    """A random law for every context, of a Dirichlet: the toy of all exact checks.

    vocab: V; seed; spread: the Dirichlet's parameter, small for peaked laws; order: of
    the context, None for all of it. The same seed and context give the same law.
    """

    def law(context: tuple[int, ...]) -> np.ndarray:
        rng = np.random.default_rng([seed, len(context), *context])
        return rng.dirichlet(np.full(vocab, spread))

    return LawTarget(law, vocab, order=order)


def ngram_target(model: Ngram) -> LawTarget:
    """An interpolated n-gram model as target or draft."""
    return LawTarget(model.law, model.V, order=model.order)


def _known(prompt: Sequence[int], vocab: int) -> None:
    need(len(prompt) > 0, "The prompt is empty; give at least one token.")
    low, high = min(prompt), max(prompt)
    need(
        low >= 0 and high < vocab,
        f"The prompt's tokens span {low} to {high}; the model knows 0 to {vocab - 1}: "
        "is it of another tokenizer?",
    )


# -- our transformer ------------------------------------------------------------------


class NeuralTarget:
    """A `lib.language` transformer with a cache that is allocated once and cropped.

    model: a `Decoder`; hidden: whether passes return the last stream, for heads.
    """

    def __init__(self, model: Decoder, hidden: bool = False) -> None:
        self.model, self.hidden = model, hidden
        self.vocab, self.max_len = model.vocab, model.max_len

    def start(self, prompt: Sequence[int], room: int = 256) -> Any:
        """A cache that has read all but the last token. Raises ValueError."""
        return self.model.start([prompt], room)

    def forward(self, state: Any, last: int, tree: Tree) -> Out:
        """Logits after the last token and after every node, (n + 1, V)."""
        tokens = torch.tensor([[last, *tree.tokens]], device=self.model.device)
        shape = None if tree.parents is None else self._layout(tree)
        done = self.model.extend(state, tokens, shape)
        return Out(rows_of(done.logits[0]), done.hidden[0] if self.hidden else None)

    def _layout(self, tree: Tree) -> Layout | None:
        if tree.chain:
            return None
        found = layout_of(tree.parents)
        place = self.model.device
        return Layout(found.depth.to(place), found.visible.to(place))

    def commit(self, state: Any, path: Sequence[int]) -> None:
        """Keep the rows of the last committed token and of a path."""
        state.commit(path)

    def crop(self, state: Any, rows: int) -> None:
        """Forget all behind the first rows."""
        state.crop(rows)

    def rows(self, state: Any) -> int:
        """How many tokens it has read."""
        return state.rows[0]


def rows_of(logits: Tensor) -> np.ndarray:
    """Logits of a pass as numpy; on a processor they share memory."""
    if logits.dtype in (torch.bfloat16, torch.float16):
        logits = logits.float()
    return logits.cpu().numpy()


# -- any causal model of transformers -------------------------------------------------


@dataclass(slots=True)
class Past:
    """The state of a `HubTarget`: its cache, rows that are committed and written."""

    cache: Any
    rows: int = 0
    written: int = 0


class HubTarget:
    """Any causal language model of `transformers` that keeps keys and values.

    model: loaded by `AutoModelForCausalLM.from_pretrained` or made from a config;
    max_len: context, None for the model's own. Raises ValueError for models whose state
    cannot be cropped (sliding windows, recurrent states, encoder-decoders).
    """

    def __init__(self, model: Any, max_len: int | None = None) -> None:
        config = model.config.get_text_config()
        name = type(model).__name__
        need(
            not getattr(config, "is_encoder_decoder", False),
            f"{name} has an encoder; give a decoder-only model.",
        )
        need(
            not getattr(model, "_is_stateful", False),
            f"{name} keeps a recurrent state, which cannot go back behind rejected "
            "tokens; give a model with keys and values only.",
        )
        kinds = set(getattr(config, "layer_types", None) or ())
        windowed = getattr(config, "sliding_window", None) and getattr(
            config, "use_sliding_window", True
        )
        need(
            kinds <= {"full_attention"} if kinds else not windowed,
            f"{name} has sliding-window or other layers ({', '.join(sorted(kinds))}), "
            "whose cache cannot go back; give a model with full attention.",
        )
        self.model = model.eval()
        self.vocab = int(model.get_output_embeddings().weight.shape[0])
        own = getattr(config, "max_position_embeddings", None)
        self.max_len = int(max_len or own or 10**9)
        self.device = next(model.parameters()).device

    def start(self, prompt: Sequence[int], room: int = 0) -> Past:
        """A cache that has read all but the last token. Raises ValueError."""
        from transformers import DynamicCache

        _known(prompt, self.vocab)
        need(
            len(prompt) <= self.max_len,
            f"The prompt has {len(prompt)} tokens; the context is {self.max_len}.",
        )
        state = Past(DynamicCache(config=self.model.config))
        if len(prompt) > 1:
            self._read(state, list(prompt[:-1]), None)
            state.rows = state.written
        return state

    @torch.inference_mode()
    def _read(self, state: Past, tokens: list[int], tree: Tree | None) -> Tensor:
        more: dict[str, Any] = {}
        if tree is not None and not tree.chain:
            layout = layout_of(tree.parents)
            positions = state.rows + layout.depth
            seen = torch.ones(len(tokens), state.rows + len(tokens), dtype=torch.bool)
            seen[:, state.rows :] = layout.visible
            # A float mask is taken as it is; a boolean one is not, everywhere.
            kind = self.model.dtype
            mask = torch.zeros(seen.shape, dtype=kind)
            mask.masked_fill_(~seen, torch.finfo(kind).min)
            more["attention_mask"] = mask[None, None].to(self.device)
        else:
            positions = torch.arange(state.rows, state.rows + len(tokens))
        done = self.model(
            input_ids=torch.tensor([tokens], device=self.device),
            past_key_values=state.cache,
            position_ids=positions[None].to(self.device),
            use_cache=True,
            **more,
        )
        state.written = state.rows + len(tokens)
        return done.logits[0]

    def forward(self, state: Past, last: int, tree: Tree) -> Out:
        """Logits after the last token and after every node, (n + 1, V)."""
        self._drop(state)
        return Out(rows_of(self._read(state, [last, *tree.tokens], tree)))

    def _drop(self, state: Past) -> None:
        """Take away what was written and not committed."""
        if state.written > state.rows:
            # The number to remove, negative: see the test for this version's meaning.
            state.cache.crop(state.rows - state.written)
            state.written = state.rows

    def commit(self, state: Past, path: Sequence[int]) -> None:
        """Keep the rows of the last committed token and of a path."""
        path = list(path)
        if path != list(range(len(path))):
            rows = torch.tensor(path, device=self.device) + state.rows + 1
            with torch.inference_mode():
                for layer in state.cache.layers:
                    for part in (layer.keys, layer.values):
                        begin = state.rows + 1
                        part[:, :, begin : begin + len(path)] = part[:, :, rows]
        state.rows += 1 + len(path)
        self._drop(state)

    def crop(self, state: Past, rows: int) -> None:
        """Forget all behind the first rows."""
        need(rows <= state.rows, f"{rows} rows were asked for; it has {state.rows}.")
        state.rows = rows
        self._drop(state)

    def rows(self, state: Past) -> int:
        """How many tokens it has read."""
        return state.rows


def same_tokens(target: Any, draft: Any, tables: Sequence[Any] = ()) -> None:
    """Check that two models speak of the same tokens.

    target, draft: with `vocab`; tables: both tokenizers' tables, if they are at hand:
    an equal number of tokens says little. Raises ValueError.
    """
    need(
        target.vocab == draft.vocab,
        f"The draft knows {draft.vocab} tokens and the target {target.vocab}; train or "
        "choose a draft with the target's tokenizer.",
    )
    if len(tables) == 2:
        other = [i for i, (a, b) in enumerate(zip(*tables)) if a != b]
        need(
            not other and len(tables[0]) == len(tables[1]),
            f"Both tokenizers have {len(tables[0])} tokens, but they differ, first at "
            f"token {other[:1] or 'the end'}; choose a draft with the target's own.",
        )
