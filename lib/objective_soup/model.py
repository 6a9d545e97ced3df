"""One encoder, many heads: recognition and translation by language, audio alone.

`Soup` holds the shared conformer and a head an objective. `losses` runs each language's
batch through the encoder once, so that the graph of its recognition and translation is
its own, and a backward pass of one objective touches its own batch only. All draws of
a loss follow from (seed, step, language), and are the same beside other objectives.
Sources: 2508.09228 (the objectives; body second-hand), 2202.01855 (BEST-RQ),
1807.03748 (CPC).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from lib.codebooks import RandomProjection
from lib.kit.checks import choice, count, need
from lib.objective_soup.world import (
    END,
    IGNORED,
    Audio,
    Batches,
    Examples,
    World,
)
from lib.speech.conformer import Conformer, valid_frames
from lib.speech.ctc import transcripts
from lib.speech.masking import seeded, span_mask, with_noise
from lib.speech.models import load_model, save_model
from lib.speech.pretraining import cross_entropy
from lib.speech.recognition import recognition_loss
from lib.speech.vocabulary import Vocabulary

FRONT = "front end"
BRANCHES = ("feed-forward 1", "attention", "convolution", "feed-forward 2", "norm")
GRANULARITIES = ("block", "module", "tensor")
SSL = ("best_rq", "cpc")


class Sizes(NamedTuple):
    """The sizes of a soup.

    d, blocks, heads, ff, kernel, dropout: of the `Conformer`; stack: frames side by
    side in its front end, 2 of 40 ms are 80 ms; features: values of a frame; layers: of
    each decoder; V, d_c: codes of BEST-RQ and their values.
    """

    d: int = 48
    blocks: int = 2
    heads: int = 4
    ff: int = 2
    kernel: int = 9
    dropout: float = 0.1
    stack: int = 2
    features: int = 80
    layers: int = 1
    V: int = 64
    d_c: int = 8


class Symbols(NamedTuple):
    """What of a `World` a model needs: its languages and what is written in them."""

    words: Mapping[str, Vocabulary]
    english: Vocabulary
    translated: tuple[str, ...]


class Losses(dict[str, Tensor]):
    """Losses by objective, with the states of all layers of every encoder pass."""

    states: list[list[Tensor]]


class Encoded(NamedTuple):
    """What heads read: states h (batch, T, d), zero past the lengths (batch,)."""

    h: Tensor
    lengths: Tensor


def side_by_side(x: Tensor, lengths: Tensor, stack: int) -> tuple[Tensor, Tensor]:
    """Frames put together by `stack`: (batch, T, f) to (batch, ceil(T / stack), ...).

    Frames past the lengths must be zero. Returns them and their lengths.
    """
    x = functional.pad(x, (0, 0, 0, -x.shape[1] % stack))
    return x.unflatten(1, (-1, stack)).flatten(2), (lengths + stack - 1) // stack


class Decoder(nn.Module):
    """A causal transformer decoder that writes a translation word by word.

    d: of the states; symbols: words, numbered from 1; 0 begins and ends a translation;
    heads, ff, dropout: of its layers; layers. Raises ValueError for sizes.
    Source: Vaswani et al. 2017; 2508.09228 (code, without its missing mask).
    """

    def __init__(
        self,
        d: int,
        symbols: int,
        heads: int = 4,
        ff: int = 2,
        dropout: float = 0.1,
        layers: int = 1,
    ) -> None:
        super().__init__()
        count("symbols", symbols)
        self.d = d
        self.embedding = nn.Embedding(symbols + 1, d)
        how = {"batch_first": True, "norm_first": True}
        self.layers = nn.ModuleList(
            nn.TransformerDecoderLayer(d, heads, ff * d, dropout, **how)
            for _ in range(layers)
        )
        self.norm, self.out = nn.LayerNorm(d), nn.Linear(d, symbols + 1)

    def positions(self, L: int, like: Tensor) -> Tensor:
        """Sines and cosines of places 0 to L - 1: (L, d)."""
        place = torch.arange(L, device=like.device)[:, None]
        pace = torch.arange(0, self.d, 2, device=like.device) * (
            -math.log(1e4) / self.d
        )
        angle = place * pace.exp()
        return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)[:, : self.d]

    def forward(self, written: Tensor, seen: Encoded) -> Tensor:
        """Logits of the next word at every place.

        written: (batch, L), END first; seen: the encoder's states. Returns (batch, L,
        symbols + 1); place l sees written[:, : l + 1] only.
        """
        L = written.shape[1]
        x = self.embedding(written) * math.sqrt(self.d) + self.positions(L, seen.h)
        future = torch.ones(L, L, dtype=torch.bool, device=x.device).triu(1)
        past_end = ~valid_frames(seen.lengths, seen.h.shape[1])
        for layer in self.layers:
            x = layer(x, seen.h, tgt_mask=future, memory_key_padding_mask=past_end)
        return self.out(self.norm(x))

    def loss(self, seen: Encoded, english: Tensor) -> Tensor:
        """Mean cross-entropy over the words and ends of a batch's translations.

        english: (batch, L) of `Examples`. Padding counts nowhere.
        """
        before = english.clamp_min(END)[:, :-1]  # IGNORED stands behind every word
        written = functional.pad(before, (1, 0), value=END)
        logits = self(written, seen)
        return functional.cross_entropy(
            logits.flatten(0, 1), english.flatten(), ignore_index=IGNORED
        )

    @torch.no_grad()
    def greedy(self, seen: Encoded, longest: int = 40) -> list[list[int]]:
        """The likeliest next word again and again, until END or `longest` words.

        Returns one list of words an utterance. Raises ValueError for `longest`.
        """
        count("longest", longest)
        written = seen.lengths.new_full((len(seen.h), 1), END)
        ended = torch.zeros(len(seen.h), dtype=torch.bool, device=seen.h.device)
        for _ in range(longest):
            word = self(written, seen)[:, -1].argmax(-1)
            word = word.masked_fill(ended, END)
            ended |= word == END
            written = torch.cat([written, word[:, None]], 1)
            if bool(ended.all()):
                break
        rows = written[:, 1:].tolist()
        return [row[: row.index(END)] if END in row else row for row in rows]


# -- the self-supervised heads --------------------------------------------------------


class BestRQ(nn.Module):
    """Codes of masked frames, from a random projection of the input.

    sizes; seed: of the projection; p, span: of the mask. Source: 2202.01855.
    """

    def __init__(
        self, sizes: Sizes, seed: int = 0, p: float = 0.2, span: int = 2
    ) -> None:
        super().__init__()
        wide = sizes.features * sizes.stack
        self.stack, self.p, self.span = sizes.stack, p, span
        self.label = RandomProjection(wide, sizes.d_c, sizes.V, seed)
        self.out = nn.Linear(sizes.d, sizes.V)

    def loss(self, encoder: Conformer, batch: Audio, g: torch.Generator) -> Tensor:
        """Mean cross-entropy over the masked frames; 0 where none was masked."""
        x, lengths = side_by_side(*batch, self.stack)
        mask = span_mask(lengths, self.p, self.span, g, x.shape[1])
        h = encoder(with_noise(x, mask, g), lengths)[-1]
        return cross_entropy(self.out(h[mask]), self.label(x[mask]))


class CPC(nn.Module):
    """Future states from the last one of a stretch, against all others of the batch.

    sizes; context, future: frames of both stretches; tau: temperature. One map d -> 2d
    -> d is applied again and again. Sources: 1807.03748; 2508.09228 (code).
    """

    def __init__(
        self, sizes: Sizes, context: int = 12, future: int = 6, tau: float = 0.1
    ) -> None:
        super().__init__()
        d = sizes.d
        self.stack, self.context, self.future = sizes.stack, context, future
        self.tau = tau
        self.next = nn.Sequential(nn.Linear(d, 2 * d), nn.ReLU(), nn.Linear(2 * d, d))

    def loss(self, encoder: Conformer, batch: Audio, g: torch.Generator) -> Tensor:
        """Mean InfoNCE over (utterance, step) pairs. Raises ValueError if too short."""
        x, lengths = side_by_side(*batch, self.stack)
        total = self.context + self.future
        enough = lengths >= total
        need(
            int(enough.sum()) > 1,
            f"CPC needs two utterances of {total} frames; give longer speech, or less "
            "context.",
        )
        x, lengths = x[enough], lengths[enough]
        room = (lengths - total + 1).cpu()
        first = (torch.rand(len(x), generator=g) * room).long().to(x.device)
        rows = torch.arange(len(x), device=x.device)[:, None]
        part = x[rows, first[:, None] + torch.arange(total, device=x.device)]
        guess = encoder(part[:, : self.context])[-1][:, -1]
        truth = encoder(part[:, self.context :])[-1]
        guesses = []
        for _ in range(self.future):
            guess = self.next(guess)
            guesses.append(guess)
        p = functional.normalize(torch.stack(guesses, 1).flatten(0, 1), dim=-1)
        z = functional.normalize(truth.flatten(0, 1), dim=-1)
        which = torch.arange(len(z), device=z.device)
        return functional.cross_entropy(p @ z.T / self.tau, which)


# -- the whole ------------------------------------------------------------------------


class Soup(nn.Module):
    """A shared encoder with a head an objective; each draws its weights on its own.

    world: for its languages and symbols; sizes: see `Sizes`; ssl: "best_rq" or "cpc";
    seed: of all first weights. Raises ValueError for sizes and words.
    """

    def __init__(
        self,
        world: World | Symbols,
        sizes: Sizes | None = None,
        ssl: str = "best_rq",
        seed: int = 0,
    ) -> None:
        super().__init__()
        choice("ssl", ssl, SSL)
        self.sizes = s = sizes or Sizes()
        self.symbols = Symbols(dict(world.words), world.english, world.translated)
        how = {n: getattr(s, n) for n in ("d", "blocks", "heads", "ff", "kernel")}
        with seeded(seed, "encoder"):
            wide = s.features * s.stack
            self.encoder = Conformer(wide, **how, dropout=s.dropout)
        self.recognisers, self.decoders = nn.ModuleDict(), nn.ModuleDict()
        for language, words in world.words.items():
            with seeded(seed, "asr", language):
                self.recognisers[language] = nn.Linear(s.d, len(words))
        for language in world.translated:
            with seeded(seed, "st", language):
                self.decoders[language] = Decoder(
                    s.d, len(world.english) - 1, s.heads, s.ff, s.dropout, s.layers
                )
        with seeded(seed, "ssl"):
            self.ssl = BestRQ(s, seed) if ssl == "best_rq" else CPC(s)

    def encode(self, x: Tensor, lengths: Tensor) -> Encoded:
        """The last states of padded speech, at the front end's pace."""
        x, lengths = side_by_side(x, lengths, self.sizes.stack)
        return Encoded(self.encoder(x, lengths)[-1], lengths)

    def layers(self, granularity: str = "block") -> dict[str, list[Tensor]]:
        """The encoder's parameters by name: {"front end": [...], "block 1": [...]}.

        granularity: "block", "module" (its branches) or "tensor". Raises ValueError
        for another word.
        """
        choice("granularity", granularity, GRANULARITIES)
        found: dict[str, list[Tensor]] = {}
        for name, p in self.encoder.named_parameters():
            group, *rest = name.split(".")
            key = FRONT
            if group == "blocks":
                key = f"block {int(rest[0]) + 1}"
                if granularity == "module":
                    key += f" {BRANCHES[int(rest[1])]}"
            found.setdefault(name if granularity == "tensor" else key, []).append(p)
        return found

    def heads(self) -> dict[str, list[Tensor]]:
        """The parameters of every objective's head: {"asr_de": [...], ...}."""
        found = {f"asr_{n}": m for n, m in self.recognisers.items()}
        found |= {f"st_{n}": m for n, m in self.decoders.items()}
        found["ssl"] = self.ssl
        return {name: list(part.parameters()) for name, part in found.items()}


def losses(
    model: Soup, batches: Batches, names: Iterable[str], *seed: int | str
) -> Losses:
    """The loss of every objective: CTC and cross-entropy a word, a masked frame's code.

    batches: of `Feed`; names: of the objectives; seed: numbers and words that all draws
    follow from, with the batch's name. A language's batch goes through the encoder
    once. Returns scalars in the order of names, and the encoder's states. Raises
    ValueError for a name whose batch or head is not there.
    """
    names, found = list(names), {}
    known = model.heads()
    for name in names:
        choice("The objective", name, known)
        need(
            (name.partition("_")[2] or name) in batches,
            f"There is no batch for {name}.",
        )
    with passed(model.encoder) as states:
        for key, batch in batches.items():
            with seeded(*seed, key) as g:
                if key == "ssl" and key in names:
                    found[key] = model.ssl.loss(model.encoder, batch, g)
                elif key != "ssl" and {f"asr_{key}", f"st_{key}"} & set(names):
                    found |= written_down(model, key, batch, names)
    own = Losses((name, found[name]) for name in names)
    own.states = states
    return own


@contextmanager
def passed(encoder: Conformer) -> Iterator[list[list[Tensor]]]:
    """Inside `with`, the list it yields grows by the states of every encoder pass."""
    states: list[list[Tensor]] = []
    handle = encoder.register_forward_hook(lambda _, __, out: states.append(out))
    try:
        yield states
    finally:
        handle.remove()


def written_down(
    model: Soup, language: str, batch: Examples, names: Sequence[str]
) -> dict[str, Tensor]:
    """The losses of one language's objectives: one encoder pass for both.

    The encoder draws first, so that both see the same states alone and together.
    """
    speech, english = batch
    seen, found = model.encode(speech.features, speech.lengths), {}
    if f"asr_{language}" in names:
        found[f"asr_{language}"] = ctc(model, language, seen, speech)
    if f"st_{language}" in names:
        found[f"st_{language}"] = model.decoders[language].loss(seen, english)
    return found


def ctc(model: Soup, language: str, seen: Encoded, speech: Any) -> Tensor:
    """CTC a word, the mean over utterances. Raises ValueError as `ctc_loss`."""
    log_probs = model.recognisers[language](seen.h).log_softmax(-1)
    said = transcripts(speech.targets, speech.target_lengths)
    return recognition_loss([log_probs], seen.lengths, said)


# -- files ----------------------------------------------------------------------------


def save_soup(path: str | Path, model: Soup, card: Mapping[str, Any]) -> None:
    """Write a model as float16 with its sizes, symbols and a card; see `save_model`.

    card: plain data, how it was made and what it can do.
    """
    words, english, translated = model.symbols
    about = {
        "sizes": model.sizes._asdict(),
        "ssl": "best_rq" if isinstance(model.ssl, BestRQ) else "cpc",
        "units": english.units,
        "words": {language: list(v.symbols) for language, v in words.items()},
        "english": list(english.symbols),
        "translated": list(translated),
    }
    save_model(path, model.state_dict(), {"soup": about} | dict(card))


def load_soup(path: str | Path) -> tuple[Soup, dict[str, Any]]:
    """A model and its card, from a file of `save_soup`.

    Raises ValueError for a file that cannot be read or holds no soup.
    """
    state, card = load_model(path)
    need("soup" in card, f"{Path(path).name} holds no soup but another model.")
    about = card["soup"]
    units = about["units"]
    words = {n: Vocabulary(tuple(v), units) for n, v in about["words"].items()}
    english = Vocabulary(tuple(about["english"]), units)
    symbols = Symbols(words, english, tuple(about["translated"]))
    model = Soup(symbols, Sizes(**about["sizes"]), about["ssl"])
    model.load_state_dict(state)
    return model, card
