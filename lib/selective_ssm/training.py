"""Training a small language model, and what to measure it by.

`train` reads like the algorithm: AdamW without decay on the recurrences' own
parameters, linear warm-up, then cosine, clipped gradients. A batch depends on its step
only, so a run that was killed and continued from its checkpoint ends with the same bits
on the same machine.
Sources: 2312.00752 (appendix E: AdamW, clipping at 1, warm-up and cosine).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from lib.kit.checkpoints import finite, mixed, resume, save
from lib.kit.checks import count, need
from lib.selective_ssm.tasks import IGNORE, mqar
from lib.ssm_init.training import schedule

Batches = Callable[[int], tuple[Tensor, Tensor]]  # step -> tokens, targets
NOT_DECAYED = ("A_log", "D", "dt_bias", "B", "C")


# -- one run ------------------------------------------------------------------------


def param_groups(
    model: nn.Module, lr: float = 3e-3, weight_decay: float = 0.1
) -> list[dict]:
    """Optimiser groups: matrices are decayed; A_log, D, steps, biases, norms are not.

    model: any; lr; weight_decay: of the first group. Returns one or two groups for
    AdamW, named "decayed" and "plain". Raises ValueError for rates. Source:
    state-spaces/mamba (`_no_weight_decay`); 2312.00752, appendix E.
    """
    need(
        lr > 0 and weight_decay >= 0,
        f"lr is {lr}, weight_decay {weight_decay}; give a positive rate, and a decay "
        "of 0 or more.",
    )
    named: dict[str, list] = {"decayed": [], "plain": []}
    for name, p in model.named_parameters():
        if p.requires_grad:
            own = name.rpartition(".")[2] in NOT_DECAYED
            named["plain" if own or p.ndim < 2 else "decayed"].append(p)
    decay = {"decayed": weight_decay, "plain": 0.0}
    return [
        {"params": named[key], "lr": lr, "weight_decay": decay[key], "name": key}
        for key in named
        if named[key]
    ]


def train(
    model: nn.Module,
    batches: Batches,
    *,
    steps: int,
    lr: float = 3e-3,
    weight_decay: float = 0.1,
    warmup: float = 0.1,
    clip: float = 1.0,
    on_step: Callable[[int, int, float], None] | None = None,
    checkpoint: str | Path | None = None,
    every: int = 100,
) -> dict[str, list[float]]:
    """Train a language model in place; continue from a checkpoint if there is one.

    model: tokens (batch, length) -> logits (batch, length, vocab), on its device;
    batches: of a step's number, tokens and targets (batch, length), IGNORE where
    nothing is asked; lr, weight_decay: see `param_groups`; warmup: share of the steps;
    clip: norm of the gradient; on_step: called with the step, the number of steps and
    the loss; checkpoint: a file written every `every` steps and at the end.
    Returns {"loss": one a step, in nats}. Raises ValueError for settings or another
    run's checkpoint, FloatingPointError when the loss is not finite.
    Source: 2312.00752, appendix E.
    """
    count("steps", steps)
    count("every", every)
    need(clip > 0, f"clip is {clip}; give a positive norm.")
    need(0 <= warmup < 1, f"warmup is {warmup}; give a share of the steps below 1.")
    place = next(model.parameters()).device
    optimiser = torch.optim.AdamW(
        param_groups(model, lr, weight_decay),
        betas=(0.9, 0.95),
        fused=place.type in ("cpu", "cuda"),
    )
    settings = dict(steps=steps, lr=lr, weight_decay=weight_decay, warmup=warmup)
    settings |= dict(clip=clip)
    history: dict[str, list[float]] = {"loss": []}
    begin = resume(checkpoint, model, optimiser, settings, history)
    model.train()
    for step in range(begin, steps):
        for group in optimiser.param_groups:
            group["lr"] = lr * schedule(step, steps, warmup * steps)
        tokens, targets = (x.to(place) for x in batches(step))
        optimiser.zero_grad()
        loss = cross_entropy(model(tokens), targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimiser.step()
        history["loss"].append(finite(loss.item(), step))
        if on_step is not None:
            on_step(step + 1, steps, loss.item())
        if (step + 1) % every == 0 or step + 1 == steps:
            save(checkpoint, model, optimiser, settings, history)
    return history


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """The mean loss in nats where something is asked.

    logits: (batch, length, vocab); targets: (batch, length), IGNORE elsewhere. Returns
    a number. Only asked positions reach the softmax. Source: textbook.
    """
    asked = targets != IGNORE
    return functional.cross_entropy(logits[asked], targets[asked])


# -- recall -------------------------------------------------------------------------


def recall_batches(
    batch: int = 32, pairs: int | Sequence[int] = 4, *, seed: int = 0, **task
) -> Batches:
    """Fresh rows of `mqar` for every step.

    batch: rows; pairs: in each row, or several numbers that take turns (easy rows show
    sooner that keys matter; 2312.04927 trains on such a mixture); seed: of the run;
    task: length, vocab, ... of `mqar`.
    Returns a function of the step's number. Raises as `mqar`, when called.
    """
    turns = [pairs] if isinstance(pairs, int) else list(pairs)

    def draw(step: int) -> tuple[Tensor, Tensor]:
        now = turns[step % len(turns)]
        return mqar(batch, pairs=now, seed=mixed(seed, step), **task)

    return draw


@torch.no_grad()
def recall_accuracy(
    model: nn.Module, tokens: Tensor, targets: Tensor, batch: int = 256
) -> float:
    """The share of questions that a model answers with the right token.

    model; tokens, targets: (rows, length), IGNORE where nothing is asked; batch: rows
    at once. Returns a fraction. Raises ValueError where nothing is asked.
    """
    asked = targets != IGNORE
    need(bool(asked.any()), "The targets ask for nothing; there is no accuracy.")
    was, place = model.training, next(model.parameters()).device
    model.eval()
    parts = [model(part.to(place)).argmax(-1).cpu() for part in tokens.split(batch)]
    model.train(was)
    return float((torch.cat(parts) == targets)[asked].float().mean())


# -- text ---------------------------------------------------------------------------


def text_batches(
    text: Tensor, batch: int = 8, length: int = 256, *, seed: int = 0
) -> Batches:
    """Windows of a text, at random places, for every step.

    text: (bytes,); batch: windows; length: of each; seed: of the run. Returns a
    function of the step's number: tokens and what follows each, (batch, length).
    Raises ValueError for a text that is too short.
    """
    need(len(text) > length, f"The text has {len(text)} bytes; length is {length}.")

    def draw(step: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng([seed, step])
        start = torch.from_numpy(rng.integers(0, len(text) - length, batch))
        rows = text[start[:, None] + torch.arange(length + 1)]
        return rows[:, :-1], rows[:, 1:]

    return draw


@torch.no_grad()
def bits_per_byte(
    model: nn.Module, text: Tensor, length: int = 256, batch: int = 32
) -> float:
    """The mean code length of a text's bytes under a model, in bits.

    model; text: (bytes,), cut into windows of length + 1 that a model reads from an
    empty memory, so that the first bytes of each are guessed with little context;
    batch: windows at once. A rest shorter than a window is left out.
    Returns bits. Raises ValueError for a text that is too short.
    """
    need(len(text) > length, f"The text has {len(text)} bytes; length is {length}.")
    rows = text[: len(text) // (length + 1) * (length + 1)].view(-1, length + 1)
    was, place = model.training, next(model.parameters()).device
    model.eval()
    total = 0.0
    for part in rows.to(place).split(batch):
        logits = model(part[:, :-1]).flatten(0, 1)
        nats = functional.cross_entropy(logits, part[:, 1:].flatten(), reduction="sum")
        total += float(nats)
    model.train(was)
    return total / (len(rows) * length) / math.log(2)


def ngram_bits(train: Tensor, test: Tensor, order: int = 2, vocab: int = 256) -> float:
    """Bits per byte of an interpolated n-gram model: what counting alone achieves.

    train, test: (bytes,); order: bytes of context; vocab: of the uniform distribution
    at the bottom. p(c | h) = (n(hc) + t(h) p(c | h')) / (n(h) + t(h)), where t(h)
    counts the different bytes seen after h, and h' is h without its oldest byte.
    Returns bits. Raises ValueError for sizes. Source: Witten and Bell 1991 (method C).
    """
    count("order", order, 0)
    need(order <= 6, f"order is {order}; longer contexts than 6 need another table.")
    need(min(len(train), len(test)) > order, "A text is shorter than the context.")
    train, test = (np.asarray(x, np.uint64) for x in (train, test))
    p = np.full(len(test) - order, 1 / vocab)
    for k in range(order + 1):
        seen, n_seen = np.unique(_codes(train, k + 1), return_counts=True)
        context, first = np.unique(seen >> np.uint64(8), return_index=True)
        n = np.add.reduceat(n_seen, first)
        types = np.diff(first, append=len(seen))
        asked = _codes(test[order - k :], k + 1)
        n_asked = _found(seen, n_seen, asked)
        above = asked >> np.uint64(8)
        n_h, t_h = _found(context, n, above), _found(context, types, above)
        p = np.where(n_h > 0, (n_asked + t_h * p) / np.maximum(n_h + t_h, 1), p)
    return float(-np.log2(p).mean())


def _codes(text: np.ndarray, width: int) -> np.ndarray:
    """Every run of `width` bytes as one number, the last byte lowest."""
    runs = [text[k : len(text) - width + 1 + k] for k in range(width)]
    code = np.zeros(len(runs[0]), np.uint64)
    for run in runs:
        code = (code << np.uint64(8)) | run
    return code


def _found(keys: np.ndarray, values: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """values[keys == asked], 0 where there is none; keys are sorted."""
    place = np.minimum(np.searchsorted(keys, asked), len(keys) - 1)
    return np.where(keys[place] == asked, values[place], 0)
