"""The recorded comparison as tables: which trials, in which order, and what they say.

`study` runs the lists of `lists` one after the other through the cache of trials, and
returns tidy tables; `effects` takes paired differences from them, one number a
pre-training seed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lib.bl_just import lists
from lib.kit.checks import choice, need
from lib.kit.claims import interval
from lib.kit.launching import devices
from lib.kit.trials import Trial

if TYPE_CHECKING:
    import pandas as pd

NAMES = {
    "supervised": "supervised",
    "pt_ft": "PT + FT",
    "self_training": "self-training",
    "fixed_sum": "fixed sum",
    "bl_just": "BL-JUST",
}
JUDGED = ("comparison", "sweep")


class Study(NamedTuple):
    """What the comparison found.

    runs: one row a trial; curves: losses, gamma and gradient norm over the steps, means
    over seeds; pulls: both gradients on theta at ten steps of every trial; chosen: of
    every arm its tuned settings.
    """

    runs: pd.DataFrame
    curves: pd.DataFrame
    pulls: pd.DataFrame
    chosen: dict[str, dict[str, Any]]

    def tables(self) -> dict[str, pd.DataFrame]:
        """The three tables by name, for `kit.save_table`."""
        return {name: getattr(self, name) for name in ("runs", "curves", "pulls")}


def study(
    speech: str = lists.CHOSEN,
    ns: Sequence[int] = (4, 16, 64),
    seeds: Sequence[int] = lists.SEEDS,
    pairs: int = 1,
    gammas: Sequence[float] = lists.GAMMAS,
    n: int = 16,
    workers: int | None = None,
    bar: bool = True,
    processes: int = 1,
    **size: Any,
) -> Study:
    """Run the pilot, the grid, the comparison and the sweep; finished trials are kept.

    speech: a key of `lists.SPEECH`, or a folder with LibriSpeech, for which there is no
    pilot; ns: labelled utterances; seeds: of pre-training; pairs: fine-tunings of each
    at n, one at the others; gammas: of the sweep, () for none; n: of the pilot, the
    grid, the ablations and the sweep; workers, bar: of `trials`; processes: of each
    training, 0 for one a GPU, and then one trial at a time if there are several; size:
    of `lists.where_of`. Raises ValueError where n is not among ns, or a seed was tuned
    on.
    """
    need(n in ns, f"The ablations have n = {n}, which must be one of {list(ns)}.")
    need(lists.TUNING_SEED not in seeds, "The arms are tuned on seed 9; leave it out.")
    size["processes"] = devices(processes, size.get("device", "cpu"))
    several = size["processes"] > 1
    how = {"workers": workers or (1 if several else None), "bar": bar}
    where = lists.where_of(speech, **size)
    first: dict[str, Trial] = {}  # explorations by key
    done: dict[str, list[Trial]] = {"pilot": []}

    def sources(wanted: Sequence[int], where: Mapping[str, Any]) -> dict[int, str]:
        found = lists.explorations(wanted, where, **how)
        first.update({trial.key: trial for trial in found})
        return {trial.settings["seed"]: trial.key for trial in found}

    tuning = lists.TUNING_SEED
    if speech in lists.SPEECH:
        kinds = {k: lists.where_of(k, **size) for k in lists.SPEECH}
        keys = {k: sources([tuning], kind)[tuning] for k, kind in kinds.items()}
        done["pilot"] = lists.run(lists.pilot(keys, n, **size), **how)
    key = sources([tuning], where)[tuning]
    tuned = lists.grid(where, key, n) + lists.second(where, key, n)
    done["grid"] = lists.run(tuned, **how)
    chosen = lists.best(done["grid"])
    keys = sources(seeds, where)
    only = {arm: (n,) for arm in lists.COSTLY}
    asked = lists.comparison(where, keys, chosen, ns, n, pairs, only)
    done["comparison"] = lists.run(asked, **how)
    done["sweep"] = lists.run(lists.sweep(where, keys, chosen, n, gammas), **how)
    return gathered(done, chosen, first, where, n)


# -- tables -------------------------------------------------------------------------


def gathered(
    done: Mapping[str, Sequence[Trial]],
    chosen: Mapping[str, Mapping[str, Any]],
    first: Mapping[str, Trial],
    where: Mapping[str, Any],
    n: int,
) -> Study:
    """Finished trials as tables.

    done: by list; chosen: of `lists.best`; first: explorations by key, whose CPU time
    is shared out; where; n: of the curves.
    """
    import pandas as pd

    rows, pulls, parts = [], [], []
    for name, trial in ((k, t) for k, some in done.items() for t in some):
        about = name_of(trial, name, chosen, where)
        rows.append(_row(trial, name, about, first))
        if name not in JUDGED:
            continue
        who = {"name": about, "n": rows[-1]["n"], "seed": rows[-1]["seed"]}
        columns = ("step", "ssl", "ctc", "cosine")
        pulls += [who | dict(zip(columns, p)) for p in trial.result["pulls"]]
        if who["n"] == n:
            parts += [who | p for p in curve(trial.result["curves"])]
    keys = ["name", "stage", "step"]
    curves = pd.DataFrame(parts).drop(columns=["n", "seed"])
    curves = curves.groupby(keys, sort=False).mean().reset_index()
    return Study(pd.DataFrame(rows), curves, pd.DataFrame(pulls), dict(chosen))


def name_of(
    trial: Trial,
    part: str,
    chosen: Mapping[str, Mapping[str, Any]],
    where: Mapping[str, Any],
) -> str:
    """What a trial is called: its arm, the ablation, or the gamma of the sweep.

    part: the list; chosen, where: of the study.
    """
    arm, options = trial.settings["arm"], trial.settings.get("options", {})
    if part == "sweep":
        return f"gamma {options['gamma']:g}"
    if arm == "bl_just" and part == "comparison":
        own = chosen[arm].get("options", {})
        for name, changed in lists.changes(where).items():
            if options == own | changed and options != own:
                return name
    return NAMES[arm]


def _row(
    trial: Trial, part: str, name: str, first: Mapping[str, Trial]
) -> dict[str, Any]:
    """A trial as a row of `runs`."""
    s, r = trial.settings, trial.result
    row = {"list": part, "name": name} | {k: s[k] for k in ("n", "seed", "subset")}
    row |= {"tune": s["tune"], "snr": str(s.get("snr", ""))}
    row |= {"per": r["per"], "wer": r["wer"]} | r["end"]
    last = s.get("options", {}).get("gamma", 1.0)
    row |= {"gamma": last if s["arm"] in ("bl_just", "fixed_sum") else math.nan}
    row |= {"N_ssl": r["counted"]["ssl"], "N_ctc": r["counted"]["ctc"]}
    about = r["pseudo"] or {}
    row |= {"pseudo": r["counted"]["pseudo"], "heard": about.get("per", math.nan)}
    own = {k: v for k, v in s.items() if k in ("keep", "options")}
    return row | {"cpu": cpu_seconds(trial, first), "setting": words(own)}


def cpu_seconds(trial: Trial, first: Mapping[str, Trial]) -> float:
    """CPU seconds of an arm, with its part of the exploration that it shares."""
    seconds = sum(trial.result["seconds"].values())
    if source := trial.settings.get("source"):
        steps = first[source].settings.get("steps", lists.N_SSL)
        whole = first[source].result["seconds"]["first"]
        seconds += whole * trial.result["shared"] / steps
    return seconds


def words(chosen: Mapping[str, Any]) -> str:
    """Settings of an arm as a phrase: "lr 0.003, encoder 0.3"."""
    flat = {k: v for k, v in chosen.items() if k != "options"}
    flat |= chosen.get("options", {})
    return ", ".join(f"{name} {value:g}" for name, value in flat.items()) or "default"


def curve(stages: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A trial's curves as rows: stage, step of the arm, losses, gamma, gradient norm.

    stages: of `records.curves`, behind one another. A step is the middle of the stretch
    that a number is the mean of.
    """
    rows, before = [], 0
    for part in stages:
        points = len(part["norm"])
        for k in range(points):
            step = before + (k + 0.5) * part["steps"] / points
            stage = part["stage"]
            if stage == "first":  # until CTC joins the lower level is alone
                stage = "exploration" if step < part["turn"] else "joint"
            row = {"stage": stage, "step": step}
            for name in ("ssl", "ctc", "pseudo", "gamma", "norm"):
                value = part[name][k] if name in part else None
                row[name] = math.nan if value is None else value
            rows.append(row)
        before += part["steps"]
    return rows


# -- what they say ------------------------------------------------------------------


def effects(
    runs: pd.DataFrame,
    ours: str,
    other: str,
    measure: str = "per",
    ns: Sequence[int] | None = None,
) -> np.ndarray:
    """Paired differences other - ours, positive where ours is lower: one a seed.

    runs: of a study, or recorded; ours, other: names; measure: a column; ns: only
    these. Each is the mean over all n that both have, and of an n the mean over
    fine-tunings. Raises ValueError for a name that the runs do not have, or no pair.
    """
    choice("measure", measure, list(runs))
    some = runs[runs["list"].isin(JUDGED)]
    choice("ours", ours, sorted(set(some["name"])))
    choice("other", other, sorted(set(some["name"])))
    if ns is not None:
        some = some[some["n"].isin(list(ns))]
    keys = ["seed", "n", "subset", "tune"]
    wide = some.pivot_table(index=keys, columns="name", values=measure)
    need({ours, other} <= set(wide), f"{ours} and {other} have no n in common.")
    gaps = (wide[other] - wide[ours]).dropna()
    need(len(gaps) > 0, f"{ours} and {other} have no n in common.")
    return gaps.groupby(["seed", "n"]).mean().groupby("seed").mean().to_numpy()


def means(
    runs: pd.DataFrame, measure: str = "per", names: Sequence[str] | None = None
) -> pd.DataFrame:
    """Mean and 95 % interval over pre-training seeds of every name and n.

    Returns rows of name, n, mean, low, high, least and most (single runs), cpu.
    """
    import pandas as pd

    some = runs[runs["list"].isin(JUDGED)]
    rows = []
    for (name, n), part in some.groupby(["name", "n"], sort=False):
        each = part.groupby("seed")[measure].mean().to_numpy()
        low, high = interval(each) if len(each) > 1 else (math.nan, math.nan)
        row = {"name": name, "n": n, "mean": each.mean(), "low": low, "high": high}
        row |= {"least": part[measure].min(), "most": part[measure].max()}
        rows.append(row | {"cpu": part["cpu"].mean()})
    found = pd.DataFrame(rows)
    return found if names is None else found[found["name"].isin(list(names))]


def against(
    runs: pd.DataFrame, other: str = "PT + FT", measure: str = "per"
) -> pd.DataFrame:
    """Every name minus another at each n that both have: mean and 95 % interval.

    Returns rows of name, n, difference, low, high, seeds; below 0 is better.
    """
    import pandas as pd

    some, rows = runs[runs["list"].isin(JUDGED)], []
    have = {name: set(part["n"]) for name, part in some.groupby("name", sort=False)}
    for name in have:
        for n in sorted(have[name] & have[other]) if name != other else ():
            gap = -effects(runs, name, other, measure, [n])
            low, high = interval(gap) if len(gap) > 1 else (math.nan, math.nan)
            row = {"name": name, "n": n, "difference": gap.mean()}
            rows.append(row | {"low": low, "high": high, "seeds": len(gap)})
    return pd.DataFrame(rows)
