"""BL-JUST on recordings of your own: some with texts, more without, one model file.

`jointly` explores the lower level on all the audio, lets CTC join while gamma rises,
and ends on CTC alone, as the arm of the notebook does; the recogniser that it returns
is one of `lib.speech.recipes`, whose `transcribed` reads it. A run that was killed goes
on from its checkpoints to the same bits. `python -m lib.bl_just train` is its command.
Several processes (`lib.kit.launching`) train one model.
Source: 2401.06980, 2412.08548 (BL-JUST).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lib.bl_just.model import LOSSES, Data, Joint, evaluated, quantizer, run_stage
from lib.bl_just.schedules import Budget, Stage, bl_just
from lib.kit import parallel
from lib.kit.checks import count, need
from lib.speech.corpus import Corpus, joined
from lib.speech.recipes import (
    LOOKS,
    Run,
    check_texts,
    checkpoint_of,
    device_of,
    fingerprint,
    finished,
    lexicon,
    pieces,
    watched_errors,
)
from lib.speech.trained import Trained

JOINTLY = Run(steps=600)


def jointly(
    corpus: Corpus,
    pools: Sequence[Corpus] = (),
    how: Run = JOINTLY,
    *,
    explore: int = 600,
    gamma: float = 1.0,
    labels: str = "best_rq",
    V: int = 64,
    sizes: dict[str, Any] | None = None,
) -> Trained:
    """Train a CTC recogniser and its encoder's masked prediction as one problem.

    corpus: recordings with texts; pools: more, whose texts are not used; how: it runs,
    its steps being the CTC gradients, the first half of which share their steps with
    the lower level; explore: steps of the lower level before; gamma: its last weight;
    labels, V: of the lower level, "best_rq" or "kmeans"; sizes: other arguments of
    `Conformer`. Returns the recogniser; its history has every loss by stage. Raises
    ValueError as `check_texts`, `finished`, `bl_just` and `train` do, and for a pool
    with other frames.
    """
    check_texts(corpus)
    count("steps", how.steps, 2)
    audio = all_audio(corpus, *pools)
    sizes = {"features": corpus.features.shape[1]} | (sizes or {})
    key = how.key(corpus) | {"pool": fingerprint(audio), "explore": explore}
    key |= {"gamma": gamma, "labels": labels, "codes": V, "sizes": sizes}
    key |= {"units": corpus.vocabulary.units}
    if done := finished(how.path, key):
        return done
    stages = bl_just(Budget(explore + how.steps // 2, how.steps), gamma)
    device = str(device_of(how.device))
    label = quantizer(labels, audio, V, how.seed, device)
    seeds = {"seed": how.seed, "tune": how.seed}
    data = Data(audio, label, corpus, frames=how.frames, device=device, **seeds)
    model = Joint(len(corpus.vocabulary) - 1, V, **seeds, size=sizes).to(device)
    made = Trained(model.recogniser, sizes, corpus.vocabulary, lexicon(corpus), key)
    history = {}
    used = dict.fromkeys(LOSSES, 0)  # mini-batches of each stream
    for stage in stages:
        found = run_stage(
            model,
            stage,
            data,
            seed=how.seed,
            used=used,
            look=_looker(how, stage, made),
            path=_checkpoint(how.path, stage),
            every=how.every,
            settings=key,
            bar=how.bar and parallel.first(),
        )
        used = {name: used[name] + n for name, n in evaluated(found).items()}
        history |= {f"{stage.name}, {name}": row for name, row in found.items()}
    made = how.written(replace(made, history=history))
    for stage in stages:
        if where := _checkpoint(how.path, stage):  # of the first process
            where.unlink(missing_ok=True)
    return made


def all_audio(corpus: Corpus, *pools: Corpus) -> Corpus:
    """What the lower level hears: the frames of all, long recordings cut, no texts.

    corpus: with texts; pools: more. Raises ValueError for frames of another length.
    """
    need(
        all(pool.stack == corpus.stack for pool in pools),
        "The recordings with texts and those without have frames of 20 and of 40 ms; "
        "prepare all with the same stack.",
    )
    nothing = np.zeros(0, np.int64)
    parts = [pieces(part)[0] for part in (corpus, *pools)]
    bare = {"vocabulary": corpus.vocabulary, "targets": nothing}
    return joined([replace(part, **bare) for part in parts])


def _checkpoint(path: str | Path | None, stage: Stage) -> Path | None:
    """Where a stage of the run that will write a model file keeps its checkpoint."""
    if path is None or not parallel.first():
        return None
    return checkpoint_of(f"{path}.{stage.name}")


def _looker(how: Run, stage: Stage, made: Trained) -> Callable[[int], None] | None:
    """Tells the held-out error rates a few times, once CTC has begun."""
    if how.tell is None or how.watch is None or not parallel.first():
        return None
    every = max(1, stage.steps // LOOKS)
    names = {"first": "both levels", "final": "CTC alone"}

    def look(done: int) -> None:
        if stage.ctc[done - 1] and (done % every == 0 or done == stage.steps):
            said = watched_errors(made, how.watch)
            how.tell(f"{names[stage.name]}, step {done} of {stage.steps}: {said}")

    return look
