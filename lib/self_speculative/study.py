"""LayerSkip's training recipe against plain training, for `lib.kit.trials`.

The recipe leaves layers out at random, the later the likelier, and adds the losses of
early exits; one head reads all of them. Source: 2404.16710, sections 4.1 and 4.2.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lib.kit.checks import need
from lib.language import (
    Recipe,
    Sizes,
    Transformer,
    losses,
    shipped_bpe,
    shipped_corpus,
    stream,
    train,
)
from lib.self_speculative.skipping import early, score

PLAIN = {"drop": 0.0, "exits": 0}


def training(
    folder: Path,
    *,
    layerskip: bool,
    seed: int,
    steps: int = 500,
    d: int = 128,
    layers: int = 6,
    batch: int = 8,
    length: int = 128,
    lr: float = 4e-3,
    watched: int = 16,
) -> dict[str, Any]:
    """Train a small model with the recipe or without, and judge every exit.

    folder: gets a checkpoint; layerskip: drop and exit losses with their defaults, else
    none of them; seed: of weights, windows and what is left out; steps, batch, length,
    lr: of `lib.language.Recipe`; d, layers: of the model; watched: windows of held-out
    text. Equal steps and tokens for both; an exit's loss is a head's work more. Returns
    by_exit (held-out loss behind each layer, nats a token), overlap (1 - TV of every
    exit's law with the full model's) and CPU seconds. Raises ValueError.
    """
    need(watched > 0, f"watched is {watched}; give at least one window.")
    corpus, tokenizer = shipped_corpus("python"), shipped_bpe()
    text = stream(tokenizer, corpus.texts("train"))
    held_out = stream(tokenizer, corpus.texts("held_out"))[: watched * length + 1]
    sizes = Sizes(len(tokenizer.table), d, layers, max(d // 64, 1), max_len=length)
    how = {"steps": steps, "batch": batch, "length": length, "lr": lr, "seed": seed}
    chosen = Recipe(**how) if layerskip else Recipe(**how, **PLAIN)
    model = Transformer(sizes, seed)
    state = folder / "model.checkpoint"
    history = train(model, text, chosen, checkpoint=state)
    model.eval().requires_grad_(False)
    exits = [early(layers, stop) for stop in range(1, layers)]
    windows = held_out[: len(held_out) // length * length].view(-1, length)
    with torch.inference_mode():
        found = score(model, windows, exits)
    state.unlink(missing_ok=True)  # 10 MB that nobody reads again
    return {
        "by_exit": losses(model, held_out, length),
        "overlap": [float(one.overlap.mean()) for one in found],
        "cpu": history["cpu"][-1],
    }
