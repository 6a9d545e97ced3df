"""Tables of finished trials: means with their spread, and paired differences.

Only what shows; no trial imports this file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lib.kit.checks import need
from lib.kit.claims import interval as bounds
from lib.kit.trials import Trial

if TYPE_CHECKING:
    import pandas as pd

SHOWN = ("wer", "bleu", "chrf", "exact", "ctc", "ce", "ssl")
PERCENT = ("wer", "exact")  # kept as shares, shown times 100


def value_of(trial: Trial, number: str, part: str = "test") -> float:
    """One mean over languages of a finished training, shares in percent, else nan."""
    found = trial.result[part]["mean"].get(number)
    if found is None:
        return float("nan")
    return found * (100 if number in PERCENT else 1)


def table(done: Mapping[Any, Sequence[Trial]], part: str = "test") -> pd.DataFrame:
    """A row an arm: means over seeds of SHOWN, the spread of WER and BLEU, the cost.

    done: finished trainings by arm; part: "test" or "validation".
    """
    import pandas as pd

    rows = []
    for name, row in done.items():
        values = {n: [value_of(t, n, part) for t in row] for n in SHOWN}
        spread = {
            f"{n} sd": float(np.std(values[n], ddof=1)) if len(row) > 1 else np.nan
            for n in ("wer", "bleu")
        }
        means = {n: float(np.mean(v)) for n, v in values.items()}
        cost = float(np.mean([t.result["cpu_s"] or np.nan for t in row]))
        rows.append({"arm": name, "seeds": len(row), **means, **spread, "CPU s": cost})
    return pd.DataFrame(rows).set_index("arm")


def paired(
    arm: Sequence[Trial], other: Sequence[Trial], number: str, part: str = "test"
) -> list[float]:
    """The differences arm - other of one number on the seeds that both have.

    Raises ValueError where they share no seed.
    """
    mine = {t.settings["seed"]: value_of(t, number, part) for t in arm}
    theirs = {t.settings["seed"]: value_of(t, number, part) for t in other}
    both = sorted(set(mine) & set(theirs))
    need(bool(both), "The two arms share no seed; run both on the same ones.")
    return [mine[seed] - theirs[seed] for seed in both]


def interval(differences: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """The mean of paired differences and the half-width of its t interval.

    The half-width is nan for a single seed.
    """
    mean = float(np.mean(differences))
    if len(differences) < 2:
        return mean, float("nan")
    low, high = bounds(differences, level)
    return mean, (high - low) / 2


def differences(
    done: Mapping[Any, Sequence[Trial]],
    against: Any = "sum",
    numbers: Sequence[str] = ("wer", "bleu", "ctc", "ce"),
) -> pd.DataFrame:
    """Every arm against one, paired by seed: means and 95 % half-widths."""
    import pandas as pd

    rows = []
    for name, row in done.items():
        if name == against:
            continue
        found = {"arm": name}
        for number in numbers:
            mean, wide = interval(paired(row, done[against], number))
            found |= {number: mean, f"± {number}": wide}
        rows.append(found)
    return pd.DataFrame(rows).set_index("arm")
