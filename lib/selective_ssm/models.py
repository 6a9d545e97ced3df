"""A language model of Mamba or Mamba-2 blocks: train in parallel, decode in O(1).

The whole model is an embedding, residual blocks with a norm before each, a norm and a
linear head that shares the embedding's weights. What it remembers of a text of any
length is a `State`; `prefill` reads many tokens at once, `step` one.
Sources: 2312.00752 and 2405.21060 with their authors' code (MambaLMHeadModel).
"""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lib.kit.checks import choice, count, need
from lib.selective_ssm.blocks import BLOCKS, LayerState
from lib.selective_ssm.decoding import sample

EMBEDDING_STD = 0.02


# -- what a model remembers ---------------------------------------------------------


@dataclass(frozen=True)
class State:
    """What a model remembers of the tokens it has read; its size does not grow.

    layers: one LayerState a block; position: tokens read so far. A model never writes
    into a state, so keeping the old one is a snapshot, and going back to it a rollback;
    `clone` is for those who write into its tensors themselves.
    """

    layers: tuple[LayerState, ...]
    position: int = 0

    def clone(self) -> State:
        """The same numbers in memory of their own."""
        return self._map(Tensor.clone)

    def detach(self) -> State:
        """The same numbers without their history, for truncated backpropagation."""
        return self._map(Tensor.detach)

    def rows(self, index: Tensor | list[int]) -> State:
        """The states of some sequences, in this order, repeated if asked for.

        index: (rows,) numbers of sequences. Raises IndexError for one that is missing.
        """
        index = torch.as_tensor(index)
        return self._map(lambda part: part[index.to(part.device)])

    def _map(self, change) -> State:
        layers = (LayerState(*map(change, layer)) for layer in self.layers)
        return State(tuple(layers), self.position)

    @property
    def batch(self) -> int:
        """How many sequences it remembers."""
        return len(self.layers[0].ssm)

    @property
    def bytes(self) -> int:
        """What it takes in memory."""
        parts = (part for layer in self.layers for part in layer)
        return sum(part.numel() * part.element_size() for part in parts)


# -- the model ----------------------------------------------------------------------


class Residual(nn.Module):
    """x + mixer(norm(x)). mixer: a Mamba or Mamba2 block. Source: 2312.00752."""

    def __init__(self, mixer: nn.Module, d_model: int, eps: float) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(d_model, eps)
        self.mixer = mixer

    def forward(
        self, x: Tensor, state: LayerState | None = None, return_state: bool = False
    ) -> Tensor | tuple[Tensor, LayerState]:
        """x (batch, length, d_model) -> the same shape, the state as in the mixer."""
        if not return_state:
            return x + self.mixer(self.norm(x), state)
        y, state = self.mixer(self.norm(x), state, return_state=True)
        return x + y, state

    def step(self, x: Tensor, state: LayerState) -> tuple[Tensor, LayerState]:
        """x (batch, d_model) -> the same shape, and the new state."""
        y, state = self.mixer.step(self.norm(x), state)
        return x + y, state


class LanguageModel(nn.Module):
    """Tokens in, logits of the next token out, through Mamba blocks.

    vocab: tokens known; d_model: width; n_layer: blocks; block: "mamba" or "mamba2";
    tie: the head shares the embedding's weights; eps: of all norms; seed: of every
    weight, None for torch's global generator as it stands; options: of the block
    (d_state, expand, d_conv, selective, headdim, groups, ...). Weights start as the
    authors': embeddings N(0, 0.02^2), out_proj divided by sqrt(n_layer), no biases.
    Raises ValueError for sizes, words and unknown options. Source: 2312.00752.
    """

    def __init__(
        self,
        vocab: int,
        d_model: int = 64,
        n_layer: int = 2,
        block: str = "mamba",
        *,
        tie: bool = True,
        eps: float = 1e-5,
        seed: int | None = None,
        **options,
    ) -> None:
        super().__init__()
        for name, size in {"vocab": vocab, "d_model": d_model}.items():
            count(name, size)
        count("n_layer", n_layer)
        choice("The block", block, BLOCKS)
        _known(block, options)
        own = options | ({"eps": eps} if block == "mamba2" else {})
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            self.embedding = nn.Embedding(vocab, d_model)
            mixers = [BLOCKS[block](d_model, **own) for _ in range(n_layer)]
            self.layers = nn.ModuleList(Residual(m, d_model, eps) for m in mixers)
            self.norm = nn.RMSNorm(d_model, eps)
            self.head = nn.Linear(d_model, vocab, bias=False)
            self._start()
        if tie:
            self.head.weight = self.embedding.weight

    @torch.no_grad()
    def _start(self) -> None:
        """The authors' `_init_weights`, which leaves the steps' biases alone."""
        self.embedding.weight.normal_(std=EMBEDDING_STD)
        self.head.weight.normal_(std=EMBEDDING_STD)
        for layer in self.layers:
            mixer = layer.mixer
            for linear in (mixer.in_proj, mixer.out_proj):
                if linear.bias is not None:
                    linear.bias.zero_()
            nn.init.kaiming_uniform_(mixer.out_proj.weight, a=math.sqrt(5))
            mixer.out_proj.weight /= math.sqrt(len(self.layers))

    @property
    def vocab(self) -> int:
        """How many tokens it knows."""
        return self.embedding.num_embeddings

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (batch, length) -> logits (batch, length, vocab) of what follows each.

        Raises ValueError for tokens that are no whole numbers, or out of range.
        """
        x = self._embed(tokens, 2)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))

    # -- token by token -------------------------------------------------------------

    def empty_state(self, batch: int) -> State:
        """The state before the first token of `batch` sequences."""
        count("batch", batch)
        return State(tuple(la.mixer.empty_state(batch) for la in self.layers))

    def prefill(
        self, tokens: Tensor, state: State | None = None
    ) -> tuple[Tensor, State]:
        """Read many tokens at once, from the start or from a state.

        tokens: (batch, length); state: what was read before. Returns the logits (batch,
        length, vocab) and the state after the last token: the same as `step` by `step`,
        and as `forward`. Raises ValueError for tokens or another model's state.
        Source: 2312.00752, section 3.3.
        """
        x = self._embed(tokens, 2)
        state = self.empty_state(len(tokens)) if state is None else state
        self._check(state, len(tokens))
        layers = []
        for layer, own in zip(self.layers, state.layers):
            x, own = layer(x, own, return_state=True)
            layers.append(own)
        position = state.position + tokens.shape[1]
        return self.head(self.norm(x)), State(tuple(layers), position)

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Read one token of each sequence: the same work however long the text was.

        tokens: (batch,); state: what was read before. Returns logits (batch, vocab) and
        the new state; the given one stays as it is. Raises as `prefill`.
        """
        x = self._embed(tokens, 1)
        self._check(state, len(tokens))
        layers = []
        for layer, own in zip(self.layers, state.layers):
            x, own = layer.step(x, own)
            layers.append(own)
        return self.head(self.norm(x)), State(tuple(layers), state.position + 1)

    @torch.no_grad()
    def generate(
        self,
        tokens: Tensor,
        steps: int,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        seed: int = 0,
        state: State | None = None,
    ) -> Tensor:
        """Continue sequences, token by token.

        tokens: (batch, length) to continue, length >= 1; steps: new tokens;
        temperature: 0 takes the likeliest; top_k: draw among so many; seed: of the
        draws, one stream whatever the device; state: what was read before `tokens`.
        Returns the new tokens (batch, steps). Raises ValueError for settings.
        """
        count("steps", steps, 0)
        logits, state = self.prefill(tokens, state)
        need(logits.shape[1] > 0, "There is no token to continue; give at least one.")
        logits, drawn = logits[:, -1], []
        generator = torch.Generator().manual_seed(seed)
        for k in range(steps):
            if k:
                logits, state = self.step(drawn[-1], state)
            drawn.append(sample(logits, generator, temperature, top_k))
        return torch.stack(drawn, dim=1) if drawn else tokens[:, :0]

    # -- bad input gets a sentence --------------------------------------------------

    def _embed(self, tokens: Tensor, ndim: int) -> Tensor:
        whole = isinstance(tokens, Tensor) and not (
            tokens.is_floating_point() or tokens.is_complex()
        )
        shape = "(batch, length)" if ndim == 2 else "(batch,)"
        need(
            whole and tokens.ndim == ndim,
            f"tokens are {_described(tokens)}; give whole numbers of shape {shape}.",
        )
        if tokens.numel():
            low, high = int(tokens.min()), int(tokens.max())
            need(
                low >= 0 and high < self.vocab,
                f"The tokens span {low} to {high}; this model knows 0 to "
                f"{self.vocab - 1}.",
            )
        return self.embedding(tokens.long())

    def _check(self, state: State, batch: int) -> None:
        need(
            len(state.layers) == len(self.layers),
            f"The state is of {len(state.layers)} layers, this model has "
            f"{len(self.layers)}: it belongs to another model.",
        )
        for layer, own in zip(self.layers, state.layers):
            layer.mixer.check_state(own, batch)


def _described(tokens: object) -> str:
    if not isinstance(tokens, Tensor):
        return f"a {type(tokens).__name__}"
    return f"{str(tokens.dtype).removeprefix('torch.')} of shape {tuple(tokens.shape)}"


def _known(block: str, options: dict) -> None:
    takes = set(inspect.signature(BLOCKS[block]).parameters) - {"d_model", "eps"}
    wrong = [name for name in options if name not in takes]
    need(
        not wrong,
        f"The block {block!r} has no option {', '.join(wrong)}; it takes "
        f"{', '.join(sorted(takes))}.",
    )
