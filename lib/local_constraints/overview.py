"""What notebook 34 shows of many trials: tables of a comparison, effects by seed.

A comparison becomes a few small tables, the same whether it has just run or was
recorded; `effects` takes paired differences from them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lib.kit.checks import need
from lib.kit.launching import devices
from lib.kit.trials import Trial
from lib.local_constraints.lists import (
    FEW,
    MIXING,
    SCRATCH,
    START,
    Done,
    best,
    comparison,
    grid,
    headroom,
    run,
)
from lib.speech.corpus import Corpus

if TYPE_CHECKING:
    import pandas as pd

TABLES = ("headroom", "tuning", "few_shot", "adaptation", "models", "training")
WHO = (
    "setting",
    "arm",
    "seed",
    "alpha",
    "lr",
)  # first columns of all but the first table
POINTS = 12  # of a training curve


def compared(
    setting: str,
    *,
    n: int = 12,
    others: Sequence[str] = (),
    workers: int | None = None,
    **how: Any,
) -> dict[str, pd.DataFrame]:
    """Run the whole comparison, or read it from the cache, as the tables of `TABLES`.

    setting: where every arm is tuned, then compared; n: labelled utterances of both
    (the headroom has its own); others: settings in which the arms of `lists.FEW` are
    compared as tuned in the first; workers: of `trials`; how: of `lists.comparison`.
    Raises as that does.
    """
    tuned, how = run(grid(setting, n=n), workers), how | {"n": n}
    chosen = best(tuned)
    few = {arm: chosen[arm] for arm in FEW}
    asked = {setting: comparison(setting, chosen=chosen, **how)}
    asked |= {other: comparison(other, chosen=few, **how) for other in others}
    parts = [tables(run(lists, workers), name) for name, lists in asked.items()]
    found = {"headroom": room(run(headroom(), workers))}
    found["tuning"] = few_shot(tuned, setting)
    return found | _joined(parts)


def compared_on(
    corpora: Sequence[str],
    *,
    workers: int | None = None,
    processes: int = 1,
    **how: Any,
) -> dict[str, pd.DataFrame]:
    """The same on corpora by name, see `large`; the arms are not tuned there.

    corpora: the last is held out; workers: of `trials`; processes: of each
    pre-training, 0 for one a GPU, and then one trial at a time if there are several;
    how: of `lists.comparison`,
    chosen among it. Raises as that does.
    """
    name = corpora[-1].partition("=")[0]
    several = devices(processes, how.get("device", "auto"))
    asked = comparison(corpora=corpora, processes=several, **how)
    found = tables(run(asked, workers or (1 if several > 1 else None)), name)
    few = found["few_shot"]
    return {"headroom": gained(few), "tuning": few.iloc[:0]} | found


def _joined(parts: Sequence[Mapping[str, pd.DataFrame]]) -> dict[str, pd.DataFrame]:
    """Tables of several settings as one of each name."""
    import pandas as pd

    return {
        name: pd.concat([part[name] for part in parts], ignore_index=True)
        for name in parts[0]
    }


def tables(done: Done, setting: str) -> dict[str, pd.DataFrame]:
    """The finished trials of a comparison as tables; WHO are the first columns of each.

    few_shot: per of each (subset, tune); adaptation: loss on the held-out speech by
    rate and steps; models: losses of the sources before and after own steps, lambda_max
    at the held-out speech and of the worst source, probe, cost; training: losses at
    theta and phi and the ratio of gradient norms over gradients spent, mean of sources.
    """
    import pandas as pd

    def who(key: str) -> tuple:
        return setting, *done.names[key]

    adaptation = [
        (*who(t.settings["source"]), float(rate), steps, loss)
        for t in done.judged
        for rate, losses in t.result["held_out"].items()
        for steps, loss in zip(t.result["after"], losses)
    ]
    cost = {t.key: t.result for t in done.starts + done.arms}
    models = [
        (*who(t.settings["source"]), *_model(t.result, cost[t.settings["source"]]))
        for t in done.judged
    ]
    training = [(*who(t.key), *point) for t in done.arms for point in _curve(t.result)]
    columns = {
        "adaptation": (adaptation, ("rate", "steps", "loss")),
        "models": (models, MODEL),
        "training": (training, ("gradients", "theta", "phi", "ratio")),
    }
    return {"few_shot": few_shot(done, setting)} | {
        name: pd.DataFrame(rows, columns=[*WHO, *heads])
        for name, (rows, heads) in columns.items()
    }


def few_shot(done: Done, setting: str) -> pd.DataFrame:
    """The fine-tunings of finished trials: columns of WHO, subset, tune, per."""
    import pandas as pd

    rows = [
        (setting, *done.names[t.settings["source"]], *_pair(t), t.result["per"])
        for t in done.adapted
    ]
    return pd.DataFrame(rows, columns=[*WHO, "subset", "tune", "per"])


MODEL = ("theta", "after 1", "after 2", "after 3", "lambda_max", "held-out lambda_max")
MODEL += ("probe", "outer steps", "gradients", "cpu_s")


def _model(judged: Mapping[str, Any], cost: Mapping[str, Any]) -> tuple:
    """One row of `models`: what was judged, and what the model cost."""
    losses = np.mean([c for c in judged["sources"].values()], axis=0)
    held_out = [n for n in judged["curvature"] if n not in judged["sources"]]
    curves = [judged["curvature"][name] for name in judged["sources"]]
    beyond = judged["curvature"][held_out[0]] if held_out else np.nan
    probe = np.nan if judged["probe"] is None else judged["probe"]
    spent = (cost["outer_steps"], cost["gradients"], cost["cpu_s"])
    return *losses.tolist(), max(curves), beyond, probe, *spent


def _curve(result: Mapping[str, Any]) -> list[tuple]:
    """The log of one arm, mean over its sources, in at most POINTS rows."""
    log = {name: part for name, part in result["log"].items() if name != "step"}
    each = result["gradients"] / result["outer_steps"]
    lines = [
        [part[note] for part in log.values()] for note in ("theta", "phi", "ratio")
    ]
    means = [np.array(line, dtype=float).mean(0) for line in lines]
    ends = np.array(result["log"]["step"]) * each
    blocks = np.array_split(np.arange(len(ends)), min(POINTS, len(ends)))
    return [
        (float(ends[b[-1]]), *(float(mean[b].mean()) for mean in means)) for b in blocks
    ]


def _pair(t: Trial) -> tuple[int, int]:
    """Labelled subset and fine-tuning seed of an `adapting` trial."""
    return t.settings["subset"], t.settings["seed"]


def room(done: Done) -> pd.DataFrame:
    """What pre-training gains on each kind of speech, a row a fine-tuning.

    done: of `lists.headroom`. Columns: speech, subset, tune, scratch, pre-trained (both
    phone error rates).
    """
    import pandas as pd

    bare = {
        (t.settings["setting"], *_pair(t)): t.result["per"]
        for t in done.adapted
        if not t.settings["source"]
    }
    rows = []
    for t in done.adapted:
        if key := t.settings["source"]:
            alone = bare[t.settings["setting"], *_pair(t)]
            rows.append((done.names[key][0], *_pair(t), alone, t.result["per"]))
    columns = ["speech", "subset", "tune", "scratch", "pre-trained"]
    return pd.DataFrame(rows, columns=columns)


def gained(few_shot: pd.DataFrame) -> pd.DataFrame:
    """The same of a comparison's own starts, the mean over pre-training seeds.

    few_shot: of `tables`. Returns the columns of `room`.
    """
    keys = ["setting", "subset", "tune"]
    per = {
        arm: few_shot[few_shot.arm == arm].groupby(keys, sort=False).per.mean()
        for arm in (SCRATCH, START)
    }
    found = per[SCRATCH].rename("scratch").to_frame()
    found["pre-trained"] = per[START]
    return found.reset_index().rename(columns={"setting": "speech"})


def effects(
    frame: pd.DataFrame, value: str, arm: str, against: str = MIXING, **where: Any
) -> list[float]:
    """How much lower a value is under one arm than under another, by seed.

    frame: of `tables`; value: a column; arm, against: names; where: values of further
    columns. Positive where the arm is lower; the mean over what a seed has several of
    (fine-tunings), paired where they are named alike. Raises ValueError where an arm is
    missing, or is there with two settings.
    """
    for column, wanted in where.items():
        frame = frame[frame[column] == wanted]
    mine, other = frame[frame.arm == arm], frame[frame.arm == against]
    for name, rows in ((arm, mine), (against, other)):
        kinds = len(rows[["alpha", "lr"]].drop_duplicates())
        need(kinds == 1, f"The table has {kinds} settings of the arm {name}, not one.")
    pairs = [c for c in ("subset", "tune") if c in frame]
    if (other.seed >= 0).all():  # else the other has no pre-training, hence no seed
        pairs = ["seed", *pairs]
    both = mine.merge(other[[*pairs, value]], on=pairs, suffixes=("", " other"))
    need(len(both) > 0, f"{arm} and {against} have no run in common.")
    gain = both[f"{value} other"] - both[value]
    return gain.groupby(both.seed).mean().tolist()


def overlap(corpora: Mapping[str, Corpus]) -> pd.DataFrame:
    """The share of a language's speech whose phone another language has too.

    corpora: with alignment, of one vocabulary, by name. Returns rows: whose frames,
    columns: whose phones; silence is left out. Raises ValueError for no alignment.
    """
    import pandas as pd

    spoken = {}
    for name, corpus in corpora.items():
        phones = corpus.all_alignments()
        spoken[name] = phones[phones > 0]
    rows = [
        [float(np.isin(phones, np.unique(other)).mean()) for other in spoken.values()]
        for phones in spoken.values()
    ]
    return pd.DataFrame(rows, index=list(spoken), columns=list(spoken))
