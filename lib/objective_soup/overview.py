"""What notebook 42 shows of many trials: small tables, and paired differences.

A comparison becomes the frames of TABLES, the same whether it has just run or was
recorded; `effects` takes paired differences from them. No trial imports this file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lib.kit.checks import need
from lib.kit.claims import interval as bounds
from lib.kit.trials import Trial
from lib.objective_soup.lists import PARTS, everything

if TYPE_CHECKING:
    import pandas as pd

TABLES = ("scores", "objectives", "paths", "maps", "selected", "costs")
POINTS = 20  # of a path
SHOWN = ("wer", "bleu", "chrf", "exact", "ctc", "ce", "ssl")
PERCENT = ("wer", "exact")  # kept as shares, shown times 100


def value_of(trial: Trial, number: str, part: str = "test") -> float:
    """One mean over languages of a finished training, shares in percent, else nan."""
    found = trial.result[part]["mean"].get(number)
    if found is None:
        return float("nan")
    return found * (100 if number in PERCENT else 1)


# -- the frames of a whole comparison -------------------------------------------------


def compared(**how: Any) -> dict[str, pd.DataFrame]:
    """Run the whole comparison, or read it from the cache, as the frames of TABLES.

    how: of `lists.everything`, which raises what is wrong with it.
    """
    return tables(everything(**how))


def tables(done: Mapping[str, Mapping[Any, Sequence[Trial]]]) -> dict[str, Any]:
    """Finished parts of `lists.everything` as the frames of TABLES.

    scores: a row a training, see `scored`; objectives: "value" (word error rate or BLEU
    in percent) and "loss" of each of its objectives; paths: "weight" and "loss" of each
    objective along the trainings of "comparison", means over seeds; maps: corrected
    cosines of every pair of objectives by layer, "d", seed and step; selected: how
    often each layer was chosen, by step; costs: CPU "milliseconds" of every variant.
    """
    import pandas as pd

    trained = [
        (part, str(arm), trial)
        for part in ("tuning", *PARTS)
        if part not in ("conflict", "costs")
        for arm, row in done.get(part, {}).items()
        for trial in row
    ]
    compared = done.get("comparison", {})
    frames = {
        "scores": [scored(*one) for one in trained],
        "objectives": [row for one in trained for row in _objectives(*one)],
        "paths": [row for arm, some in compared.items() for row in _path(arm, some)],
        "maps": [row for d, some in done.get("conflict", {}).items()
                 for trial in some for row in _map(d, trial)],
        "selected": _selected(compared.get("selected layers", ())),
        "costs": [row for some in done.get("costs", {}).values()
                  for trial in some for row in _costs(trial)],
    }  # fmt: skip
    return {name: pd.DataFrame(rows) for name, rows in frames.items()}


def scored(part: str, arm: str, trial: Trial) -> dict[str, Any]:
    """One training as a row: what it was, what it reached, what it cost.

    SHOWN of the test set, "validation" (CTC plus cross-entropy), "conflict", "harmed",
    "stationarity" (means over looks after the first tenth), "asr_share" (of all weights
    at the end), "cpu_s", "memory".
    """
    given, result = trial.settings, trial.result
    options = given.get("options", {})
    row = {"part": part, "arm": arm, "seed": given["seed"], "steps": given["steps"]}
    row |= {"lr": given.get("lr", np.nan)}
    row["weight"] = options.get("ssl", np.nan)  # "ssl" is the loss
    row |= {name: options.get(name, np.nan) for name in ("gamma", "first")}
    row |= {name: value_of(trial, name) for name in SHOWN}
    row["validation"] = value_of(trial, "ctc", "validation")
    row["validation"] += value_of(trial, "ce", "validation")
    looks = result["history"][-1]["looks"]
    for name in ("conflict", "harmed", "stationarity"):
        late = [look[name] for look in looks if look["step"] >= given["steps"] / 10]
        late = [value for value in late if value is not None]
        row[name] = float(np.mean(late)) if late else np.nan
    weights = result["weights"]
    own = sum(w for name, w in weights.items() if name.startswith("asr"))
    row["asr_share"] = own / sum(weights.values())
    return row | {name: _number(result[name]) for name in ("cpu_s", "memory")}


def _number(value: float | None) -> float:
    return np.nan if value is None else float(value)


def _objectives(part: str, arm: str, trial: Trial) -> list[dict[str, Any]]:
    rows = []
    for name, found in trial.result["test"].items():
        if name == "mean":
            continue
        value = 100 * found["wer"] if "wer" in found else found.get("bleu", np.nan)
        loss = found.get("ctc", found.get("ce", found.get("loss")))
        who = {"part": part, "arm": arm, "seed": trial.settings["seed"]}
        rows.append(who | {"objective": name, "value": value, "loss": loss})
    return rows


def _path(arm: str, trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """Weights and losses along a training, in at most POINTS windows."""
    stages = [trial.result["history"][-1] for trial in trials]
    steps = np.array(stages[0]["step"])
    blocks = np.array_split(np.arange(len(steps)), min(POINTS, len(steps)))
    mean = {
        name: np.mean([stage[name] for stage in stages], axis=0)
        for name in ("weights", "losses")
    }
    return [
        {"arm": arm, "step": int(steps[block[-1]]), "objective": name}
        | {"weight": round(float(mean["weights"][block, i].mean()), 4)}
        | {"loss": round(float(mean["losses"][block, i].mean()), 4)}
        for block in blocks
        for i, name in enumerate(stages[0]["names"])
    ]


def _map(d: Any, trial: Trial) -> list[dict[str, Any]]:
    rows = []
    for found in trial.result["maps"]:
        names = found["names"]
        who = {"d": d, "seed": trial.settings["seed"], "step": found["step"]}
        for layer, C in found["layers"].items():
            for i, j in zip(*np.triu_indices(len(names), 1)):
                pair = {"layer": layer, "one": names[i], "other": names[j]}
                rows.append(who | pair | {"cosine": _rounded(C[i][j])})
    return rows


def _rounded(value: float | None) -> float:
    return np.nan if value is None else round(value, 3)


def _selected(trials: Sequence[Trial]) -> list[dict[str, Any]]:
    if not trials:
        return []
    stages = [trial.result["history"][-1] for trial in trials]
    share = np.mean([stage["chosen"] for stage in stages], axis=0)
    return [
        {"step": step, "layer": place, "share": round(float(share[k, place]), 3)}
        for k, step in enumerate(stages[0]["step"])
        for place in range(share.shape[1])
    ]


def _costs(trial: Trial) -> list[dict[str, Any]]:
    found = trial.result
    return [
        {"variant": name, "milliseconds": float(np.median(row))}
        | {"ratio": found["ratio"][name], "floats": found["floats"][name]}
        for name, row in found["milliseconds"].items()
    ]


# -- paired differences ---------------------------------------------------------------


def effects(
    scores: pd.DataFrame, number: str, arm: str, against: str = "sum"
) -> list[float]:
    """The differences arm - against of one column on the seeds that both have.

    scores: rows of one part, or of several where arms have other names. Raises
    ValueError where they share no seed.
    """
    mine, theirs = (
        scores[scores.arm == name].set_index("seed")[number] for name in (arm, against)
    )
    both = sorted(set(mine.index) & set(theirs.index))
    need(bool(both), f"{arm} and {against} share no seed; run both on the same ones.")
    return [float(mine[seed] - theirs[seed]) for seed in both]


def interval(differences: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """The mean of paired differences and the half-width of its t interval.

    The half-width is nan for a single seed.
    """
    mean = float(np.mean(differences))
    if len(differences) < 2:
        return mean, float("nan")
    low, high = bounds(differences, level)
    return mean, (high - low) / 2


def table(scores: pd.DataFrame) -> pd.DataFrame:
    """A row an arm: means over seeds of SHOWN, the spread of WER and BLEU, the cost.

    scores: rows of one part. The spread of a single seed is nan.
    """
    by = scores.groupby("arm", sort=False)
    found = by[list(SHOWN)].mean()
    for name in ("wer", "bleu"):
        found.insert(found.columns.get_loc(name) + 1, f"{name} sd", by[name].std())
    found.insert(0, "seeds", by.seed.nunique())
    return found.assign(**{"CPU s": by.cpu_s.mean()})


def differences(
    scores: pd.DataFrame,
    against: str = "sum",
    numbers: Sequence[str] = ("wer", "bleu", "ctc", "ce"),
) -> pd.DataFrame:
    """Every arm against one, paired by seed: means and 95 % half-widths.

    scores: rows of one part. Raises ValueError for arms that share no seed.
    """
    import pandas as pd

    rows = []
    for name in scores.arm.unique():
        if name == against:
            continue
        found = {"arm": name}
        for number in numbers:
            mean, wide = interval(effects(scores, number, name, against))
            found |= {number: mean, f"± {number}": wide}
        rows.append(found)
    return pd.DataFrame(rows).set_index("arm")
