"""What notebook 32 shows: the comparison as tables, paired effects, two pictures.

`compare` runs (or reads from the cache) the trials and makes small tables of them;
`effect` is one number a pre-training seed. No trial imports this file.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lib.kit.checks import need
from lib.kit.figures import COLORS
from lib.kit.launching import devices
from lib.kit.trials import Trial, trials
from lib.speech.batches import in_order
from lib.speech.conformer import Conformer, without_dropout
from lib.speech.corpus import Corpus
from lib.speech.quality import frames
from lib.speech.recordings import FORMS
from lib.speech_ssl import adaptation, large, study
from lib.speech_ssl.lists import PAIRS, SCRATCH, adaptations, pretrainings
from lib.speech_ssl.task import POOL_FRAMES

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

MAIN = ("best_rq", "birq", "kmeans")  # arms that may have more seeds
ANCHORED = ("birq", "birq_detached", "birq_two_heads")  # 96 % of their weight
SHOWN = 1  # the labelled subset whose decoded words are kept
KEPT = ("pnmi", "bias", "used", "perplexity")  # of labels, in the table of arms


# -- the comparison -----------------------------------------------------------------


def compare(
    arms: Sequence[str],
    seeds: Sequence[int],
    steps: int,
    equal: int,
    labelled: int,
    others: Sequence[int],
    curve: Sequence[str],
    pairs: Iterable[Sequence[int]] = PAIRS,
    more_seeds: Sequence[int] = (),
    corpus: str = "",
    common: Mapping[str, Any] | None = None,
    first: Mapping[str, Any] | None = None,
    second: Mapping[str, Any] | None = None,
    processes: int = 1,
) -> dict[str, pd.DataFrame]:
    """Pre-train every arm with every seed, fine-tune all, and make tables.

    arms; seeds; steps: of pre-training; equal: steps of BEST-RQ at BiRQ's cost, 0 for
    none; labelled: utterances on which all arms are compared; others: more such
    numbers, for the arms in `curve` alone; pairs: labelled subset and fine-tuning seed;
    more_seeds: of MAIN, beyond `seeds`; corpus: "" for the spoken one on the CPU, else
    a name for `large`; common, first, second: settings of all trials, of pre-training,
    of fine-tuning; processes: of each pre-training on a named corpus, 0 for one a GPU.
    Returns tables as `tables` does. Raises ValueError for settings,
    RuntimeError where a trial fails.
    """
    need(
        corpus == "" or corpus.partition(":")[0] in FORMS,
        f"The corpus is {corpus!r}; give '' or one of {'; '.join(FORMS.values())}.",
    )
    here, there, how, many = study, adaptation, dict(common or {}), None
    if corpus:  # one trial at a time: it has the devices for itself
        here, there, how, many = large, large, how | {"corpus": corpus}, 1
    before, after = how | dict(first or {}), how | dict(second or {})
    if corpus and (several := devices(processes, how.get("device", "auto"))) > 1:
        before["processes"] = several
    asked = pretrainings(arms, seeds, steps, **before)
    if equal:
        asked += pretrainings(["best_rq"], seeds, equal, **before)
    main = [arm for arm in MAIN if arm in arms]
    asked += pretrainings(main, more_seeds, steps, **before)
    done = trials(here.pretraining, asked, workers=many)
    wanted = adaptations(["", *(t.key for t in done)], labelled, pairs, **after)
    usual = [t for t in done if _usual(t, steps, seeds)]
    some = [t.key for t in usual if t.settings["arm"] in curve]
    for n in others:
        wanted += adaptations(["", *some], n, pairs, **after)
    return tables(done, trials(there.adapting, wanted, workers=many))


def _usual(trial: Trial, steps: int, seeds: Sequence[int]) -> bool:
    return trial.settings["steps"] == steps and trial.settings["seed"] in seeds


def tables(done: Sequence[Trial], tuned: Sequence[Trial]) -> dict[str, pd.DataFrame]:
    """Finished trials as tables.

    done: of pre-training; tuned: of fine-tuning them. Returns "arms" (one row a
    pre-training), "layers", "trace" and "history" along training, "errors" (one row a
    fine-tuning; not pre-trained: arm SCRATCH, seed and steps -1) and "heard".
    """
    import pandas as pd

    by_key = {t.key: _named(t) for t in done}
    by_key[""] = {"arm": SCRATCH, "seed": -1, "steps": -1}
    found = {
        "arms": [_arm(t) for t in done],
        "layers": [_named(t) | row for t in done for row in t.result["layers"]],
        "trace": [r for t in done for r in _columns(t, "trace")],
        "history": [r for t in done for r in _columns(t, "history")],
        "errors": [by_key[t.settings["source"]] | _error(t) for t in tuned],
        "heard": [
            by_key[t.settings["source"]] | {"n": t.settings["n"]} | row
            for t in tuned
            if t.settings["subset"] == SHOWN
            and by_key[t.settings["source"]]["seed"] < 1
            for row in t.result["heard"][:2]
        ],
    }
    return {name: _frame(pd.DataFrame(rows)) for name, rows in found.items()}


def _frame(frame: pd.DataFrame) -> pd.DataFrame:
    if "layer" in frame:
        frame["layer"] = frame["layer"].astype(str)
    return frame


def _named(trial: Trial) -> dict[str, Any]:
    return {name: trial.settings[name] for name in ("arm", "seed", "steps")}


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _arm(trial: Trial) -> dict[str, Any]:
    """The row of one pre-training."""
    r = trial.result
    row = _named(trial) | {"loss": _number(r["history"]["loss"][-1])}
    for kind in ("own", "anchor"):
        found = r[kind] or {}
        row |= {f"{kind} {name}": _number(found.get(name)) for name in KEPT}
    top = r["layers"][-1] if r["layers"] else {}
    row |= {"probe": _number(top.get("probe")), "top pnmi": _number(top.get("pnmi"))}
    seconds = r["seconds"]
    row |= {"cpu s": seconds["labels"] + seconds["training"], "MiB": r["memory"]}
    return row


def _columns(trial: Trial, what: str) -> list[dict[str, Any]]:
    """Rows of what was kept along training, nan where there was nothing."""
    columns = trial.result[what]
    rows = zip(*columns.values())
    named = _named(trial)
    return [
        named | {"at" if c == "step" else c: _number(v) for c, v in zip(columns, row)}
        for row in rows
    ]


def _error(trial: Trial) -> dict[str, Any]:
    s, r = trial.settings, trial.result
    return {
        "n": s["n"],
        "subset": s["subset"],
        "tuning": s["seed"],
        "per": r["per"],
        "wer": _number(r["wer"]),
        "cpu s": r["seconds"]["all"],
    }


# -- effects ------------------------------------------------------------------------


def rates(errors: pd.DataFrame, arm: str, n: int, steps: int, what: str = "per"):
    """Error rates of an arm: a row a pre-training seed, a column a fine-tuning.

    errors: the table; arm: its name, or SCRATCH, whose single row is -1; n: labelled
    utterances; steps: of pre-training; what: "per" or "wer". Raises ValueError where
    the table has none.
    """
    here = (errors["arm"] == arm) & (errors["n"] == n)
    if arm != SCRATCH:
        here &= errors["steps"] == steps
    need(
        bool(here.any()),
        f"The table has no fine-tuning of {arm} with {steps} steps on {n} utterances.",
    )
    some = errors[here]
    return some.pivot(index="seed", columns=["subset", "tuning"], values=what)


def gain(
    errors: pd.DataFrame,
    arm: str,
    over: str,
    n: int,
    steps: int,
    over_steps: int | None = None,
    what: str = "per",
) -> np.ndarray:
    """By how much an arm has fewer errors than another: one number a pre-training seed.

    The difference is taken within each labelled subset and fine-tuning seed, then
    averaged. over_steps: of the other arm, None for the same. Arguments as of `rates`.
    """
    mine = rates(errors, arm, n, steps, what)
    other = rates(errors, over, n, over_steps or steps, what)
    if over == SCRATCH:
        return (other.iloc[0] - mine).mean(axis=1).to_numpy()
    return (other - mine).mean(axis=1).dropna().to_numpy()


def value(arms: pd.DataFrame, arm: str, column: str, steps: int) -> np.ndarray:
    """A column of the table of arms: one number a pre-training seed, in their order."""
    some = arms[(arms["arm"] == arm) & (arms["steps"] == steps)]
    need(len(some) > 0, f"The table has no pre-training of {arm} with {steps} steps.")
    return some.sort_values("seed")[column].to_numpy()


def ahead(
    arms: pd.DataFrame, arm: str, over: str, column: str, steps: int, over_steps: int
) -> np.ndarray:
    """By how much a column of the table of arms is larger for one arm than another's.

    One number for every pre-training seed that both have. Raises ValueError as `value`.
    """
    import pandas as pd

    found = []
    for name, number in ((arm, steps), (over, over_steps)):
        some = arms[(arms["arm"] == name) & (arms["steps"] == number)]
        numbers = value(arms, name, column, number)
        found.append(pd.Series(numbers, index=np.sort(some["seed"])))
    return (found[0] - found[1]).dropna().to_numpy()


def ran(arms: pd.DataFrame, arm: str, steps: int) -> bool:
    """Whether the table of arms has an arm with so many steps."""
    return bool(((arms["arm"] == arm) & (arms["steps"] == steps)).any())


def board(arms: pd.DataFrame, errors: pd.DataFrame, n: int) -> pd.DataFrame:
    """One row an arm, means over its seeds: cost, labels, what is known, errors.

    arms, errors: the tables; n: labelled utterances. "PNMI" is above chance, of the
    labels with the larger weight: BEST-RQ's where BiRQ has its published weights.
    "PER" and "median" are over all fine-tunings. The best PER comes first.
    """
    import pandas as pd

    rows = []
    for (arm, steps), some in arms.groupby(["arm", "steps"]):
        kind = "anchor" if arm in ANCHORED else "own"
        good = some[f"{kind} pnmi"] - some[f"{kind} bias"]
        row = {"arm": arm, "steps": steps, "CPU-s": some["cpu s"].mean()}
        row |= {"PNMI": good.mean(), "own codes": some["own perplexity"].mean()}
        rows.append(
            row | {"probe": some["probe"].mean()} | _wrong(errors, arm, n, steps)
        )
    nothing = dict.fromkeys(("PNMI", "own codes", "probe"), math.nan)
    row = {"arm": SCRATCH, "steps": 0, "CPU-s": 0.0} | nothing
    rows.append(row | _wrong(errors, SCRATCH, n, -1))
    return pd.DataFrame(rows).sort_values("PER", ignore_index=True)


def _wrong(errors: pd.DataFrame, arm: str, n: int, steps: int) -> dict[str, float]:
    phones, words = (
        rates(errors, arm, n, steps, what).to_numpy() for what in ("per", "wer")
    )
    return {
        "PER": float(np.nanmean(phones)),
        "median": float(np.nanmedian(phones)),
        "WER": float(words.mean()),
    }


# -- looking inside -----------------------------------------------------------------


@torch.no_grad()
def all_layers(encoder: Conformer, corpus: Corpus) -> list[torch.Tensor]:
    """States of every layer at all frames of a corpus, in one pass each batch.

    Returns one (frames, d) a layer, the input layer's first; no dropout.
    """
    found = []
    for batch in in_order(corpus, POOL_FRAMES):
        with without_dropout(encoder):
            hidden = encoder(batch.features, batch.lengths)
        found.append([frames(h, batch.lengths) for h in hidden])
    return [torch.cat(parts) for parts in zip(*found)]


# -- pictures -----------------------------------------------------------------------


def shades(codes: np.ndarray) -> np.ndarray:
    """A colour for every code, neighbours far apart: (...) to (..., 3) in 0 to 1."""
    import colorsys

    codes = np.asarray(codes)
    hues = (codes * 0.61803398875) % 1.0
    table = [
        colorsys.hls_to_rgb(h, 0.45 + 0.12 * (int(c) % 3), 0.6)
        for h, c in zip(hues.ravel(), codes.ravel())
    ]
    return np.array(table).reshape(*codes.shape, 3)


def strip(ax: Axes, codes: np.ndarray, times: np.ndarray, name: str, words=None):
    """One coloured row: what each frame is called.

    codes: (T,) whole numbers; times: (T + 1,) edges in seconds; words: what to write
    into stretches of one code, by code, None for nothing.
    """
    ax.imshow(shades(codes)[None], aspect="auto", extent=(times[0], times[-1], 0, 1))
    ax.set(yticks=[], xlim=(times[0], times[-1]))
    ax.set_ylabel(name, rotation=0, ha="right", va="center")
    ax.grid(False)
    if words is None:
        return
    edges = np.flatnonzero(np.diff(codes, prepend=-1, append=-1))
    for a, b in itertools.pairwise(edges):
        if word := words[codes[a]]:
            middle = (times[a] + times[b]) / 2
            ax.text(
                middle,
                0.45,
                word,
                ha="center",
                va="center",
                fontsize=8,
                color="white",
                fontweight="bold",
            )


def code_map(phones: np.ndarray, codes: np.ndarray, P: int, V: int) -> np.ndarray:
    """P(phone | code), the codes in order of their commonest phone: (P, used codes).

    phones, codes: (n,) whole numbers; P, V: how many there are. Codes that never occur
    are left out; phones keep their numbers.
    """
    joint = np.zeros((P, V))
    np.add.at(joint, (phones, codes), 1)
    joint = joint[:, joint.sum(0) > 0]
    share = joint / joint.sum(0)
    return share[:, np.lexsort((-share.max(0), share.argmax(0)))]


def arm_color(arm: str) -> str:
    """Fixed labels blue, fitted ones green, moving ones orange, BiRQ pink."""
    groups = {
        "blue": ("best_rq", "two_codebooks"),
        "green": ("kmeans", "fitted_input"),
        "orange": ("relabel_best_rq", "dinosr", "wav2vec"),
        "pink": ("birq", "birq_detached", "birq_fitted", "birq_two_heads"),
    }
    for color, arms in groups.items():
        if arm in arms:
            return COLORS[color]
    return COLORS["grey"]
