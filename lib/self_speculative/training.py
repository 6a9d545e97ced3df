"""One training loop for everything that is added to a frozen model.

The aim is the frozen model's law at every position, not the text's token: a draft is
accepted for being like the model. Source: specification, sections 5.4, 5.8 and 10.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lib.kit.checkpoints import finite, resume, save
from lib.kit.checks import count, need
from lib.language import Recipe, Transformer
from lib.language.training import Both, schedule, windows
from lib.self_speculative.heads import Head

if TYPE_CHECKING:
    import pandas as pd


def train_head(
    head: Head,
    model: Transformer,
    text: Tensor,
    recipe: Recipe,
    *,
    checkpoint: str | Path | None = None,
    every: int = 50,
    on_step: Callable[[int, int, float], None] | None = None,
) -> dict[str, list]:
    """Train a head, an adapter or mask tokens in place on a frozen model's laws.

    head; model: not changed; text: (tokens,) to read, best the model's own; recipe: its
    drop, exits and exit_weight have no meaning here; checkpoint: a file written every
    `every` steps and at the end, from which a killed run goes on bit for bit; on_step:
    called with the step, all steps and the loss. Returns {"loss": one a step, "cpu":
    processor seconds so far}. Raises ValueError for settings or another run's
    checkpoint, FloatingPointError when the loss is not finite.
    """
    count("every", every)
    check_text(head, model, text, recipe.length)
    optimiser = Both(head, recipe)
    history: dict[str, list] = {"loss": [], "cpu": []}
    settings = asdict(recipe) | {"kind": head.kind} | head.about()
    begin = resume(checkpoint, head, optimiser, settings, history)
    spent = (history["cpu"] or [0.0])[-1] - time.process_time()
    for step in range(begin, recipe.steps):
        optimiser.rate(recipe.lr * schedule(step, recipe))
        tokens = windows(text, recipe, step)[:, : recipe.length]
        optimiser.zero_grad()
        loss = head_loss(head, model, tokens.to(model.embedding.weight.device), recipe)
        loss.backward()
        nn.utils.clip_grad_norm_(head.parameters(), recipe.clip)
        optimiser.step()
        history["loss"].append(finite(loss.item(), step))
        history["cpu"].append(time.process_time() + spent)
        if on_step is not None:
            on_step(step + 1, recipe.steps, loss.item())
        if step + 1 == recipe.steps or (step + 1) % every == 0:
            save(checkpoint, head, optimiser, settings, history)
    return history


def head_loss(head: Head, model: Transformer, tokens: Tensor, recipe: Recipe) -> Tensor:
    """The head's loss on windows (batch, length); the model gets no gradient."""
    frozen = {p: p.requires_grad for p in model.parameters()}
    model.requires_grad_(False)
    try:
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=recipe.bf16):
            with torch.no_grad():
                streams, law = read(model, tokens)
            return head.loss(model, tokens, streams, law)
    finally:
        for p, flag in frozen.items():
            p.requires_grad_(flag)


def read(model: Transformer, tokens: Tensor) -> tuple[list[Tensor], Tensor]:
    """The streams and the laws (batch, T, V) of the full model."""
    streams = model.streams(tokens)
    logits = model.read(streams[-1])
    whole = logits if logits.dtype == torch.float64 else logits.float()
    return streams, torch.softmax(whole, dim=-1)


def check_text(
    head: Head, model: Transformer, text: Tensor, length: int, more: int = 1
) -> None:
    """Raises ValueError for a head of another model, or windows that do not fit."""
    head.check(model)
    need(
        len(text) >= length + more,
        f"The text has {len(text)} tokens; a window takes {length + more}.",
    )
    need(
        length <= model.sizes.max_len,
        f"Windows of {length} tokens exceed the context of {model.sizes.max_len}.",
    )
    need(
        int(text.max()) < head.vocab,
        f"The text has token {int(text.max())}; the model knows 0 to {head.vocab - 1}.",
    )


@torch.no_grad()
def judge_head(
    head: Head, model: Transformer, text: Tensor, length: int = 192, batch: int = 8
) -> pd.DataFrame:
    """How near each guess of a draft is to the model's law, on a text.

    The guesses before it are the text's own tokens. text: (tokens,), cut into windows
    of `length`. Returns a row a guess: overlap (1 - TV) and agreement (equal likeliest
    tokens), means over positions. Raises ValueError for a text that is too short.
    """
    import pandas as pd

    check_text(head, model, text, length, 0)
    rows = text[: len(text) // length * length].view(-1, length)
    total: dict[int, list[float]] = {}
    for tokens in rows.to(model.embedding.weight.device).split(batch):
        streams, law = read(model, tokens)
        for i, (logits, where) in enumerate(head.aimed(model, tokens, streams)):
            q, p = torch.softmax(logits.to(law.dtype), dim=-1), law[:, where]
            own = total.setdefault(i, [0.0, 0.0, 0.0])
            own[0] += float(torch.minimum(p, q).sum())
            own[1] += float((p.argmax(-1) == q.argmax(-1)).sum())
            own[2] += p[..., 0].numel()
    return pd.DataFrame(
        {"overlap": a / n, "agreement": b / n} for a, b, n in total.values()
    ).rename_axis("guess")
