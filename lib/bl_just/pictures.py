"""The figures of 33 that take more than a few lines; each returns its figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from lib.bl_just.overview import effects, means
from lib.bl_just.schedules import Stage
from lib.kit.claims import interval
from lib.kit.figures import COLORS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHADES = {
    "supervised": "grey",
    "PT + FT": "blue",
    "self-training": "pink",
    "fixed sum": "amber",
    "BL-JUST": "orange",
}
LEVELS = {"ssl": "green", "ctc": "orange", "pseudo": "pink"}
FRAME = 40  # ms


def strips(
    features: np.ndarray, rows: Mapping[str, Sequence[str]], title: str
) -> Figure:
    """A spectrogram with strips of labels under it, a label a frame.

    features: (T, 80), two frames of 40 bands side by side; rows: by name, T words each,
    "" for silence or nothing; a stretch of equal words has one colour and, where there
    is room, its word.
    """
    import matplotlib.pyplot as plt

    sizes = [3.2] + [0.5] * len(rows)
    fig, axes = plt.subplots(
        len(sizes), 1, figsize=(9.2, 3.9), sharex=True, height_ratios=sizes
    )
    picture = features.reshape(-1, features.shape[1] // 2).T  # (bands, frames)
    seconds = len(features) * FRAME / 1000
    axes[0].imshow(picture, aspect="auto", origin="lower", extent=(0, seconds, 0, 40))
    axes[0].set(ylabel="mel band", title=title)
    axes[0].grid(False)
    for ax, (name, words) in zip(axes[1:], rows.items(), strict=True):
        _strip(ax, words)
        ax.set_ylabel(name, rotation=0, ha="right", va="center")
    axes[-1].set_xlabel("seconds")
    return fig


def _strip(ax: Axes, words: Sequence[str]) -> None:
    """One strip: each word a colour of its own."""
    known = {word: i for i, word in enumerate(sorted(set(words) - {""}))}
    codes = [np.nan if word == "" else known[word] * 7 % 19 for word in words]
    seconds = len(words) * FRAME / 1000
    ax.imshow(
        np.array([codes]),
        aspect="auto",
        cmap="tab20",
        vmin=0,
        vmax=19,
        extent=(0, seconds, 0, 1),
        alpha=0.55,
    )
    place = 0
    for word, some in groupby(words):
        size = len(list(some))
        if word and size * 1.5 >= len(word):
            middle = (place + size / 2) * FRAME / 1000
            ax.text(middle, 0.45, word, ha="center", va="center", fontsize=7)
        place += size
    ax.set_yticks([])
    ax.grid(False)


def plans(arms: Mapping[str, Sequence[Stage]]) -> Figure:
    """The weights of both losses in every step, a row an arm."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(len(arms), 1, figsize=(7.6, 4.4), sharex=True)
    for ax, (name, stages) in zip(axes, arms.items(), strict=True):
        total, window = 0, max(1, stages[0].steps // 60)
        for stage in stages:
            x = total + np.arange(0, stage.steps, window)
            x = np.append(x, total + stage.steps)
            ssl, ctc, pseudo = (
                _blocks(row or (0.0,) * stage.steps, window)
                for row in (stage.ssl, stage.ctc, stage.pseudo)
            )
            edges = ((ssl, 0 * ssl, "ssl"), (0 * ctc, -ctc, "ctc"))
            for high, low, level in (*edges, (-ctc, -ctc - pseudo, "pseudo")):
                color = COLORS[LEVELS[level]]
                ax.fill_between(x, low, high, step="post", color=color, lw=0)
            total += stage.steps
            ax.axvline(total, color=COLORS["black"], lw=0.8)
        ax.axhline(0, color=COLORS["black"], lw=0.6)
        ax.set(ylim=(-1.15, 1.15), yticks=[])
        ax.set_ylabel(name, rotation=0, ha="right", va="center")
        ax.grid(False)
    axes[0].set_title("Up: masked prediction. Down: CTC (pink: on pseudo-labels)")
    axes[-1].set_xlabel("optimiser step; a line ends a stage")
    return fig


def _blocks(row: Sequence[float], window: int) -> np.ndarray:
    """Means over stretches of a window, the last one twice as a step's end."""
    parts = [np.mean(row[k : k + window]) for k in range(0, len(row), window)]
    return np.array([*parts, parts[-1]])


def phases(
    explored: Sequence[float],
    steps: int,
    joint: Mapping[str, Sequence[float]],
    tuned: Mapping[str, Sequence[float]],
    gamma: Sequence[float | None],
) -> Figure:
    """Losses of the three phases side by side, gamma below.

    explored: the recorded curve of the first `steps` steps; joint, tuned: histories;
    gamma: of the joint phase.
    """
    import matplotlib.pyplot as plt

    fig, grid = plt.subplots(
        2, 3, figsize=(8.6, 3.8), sharex="col", sharey="row", height_ratios=(3, 1)
    )
    x = (np.arange(len(explored)) + 0.5) * steps / len(explored)
    grid[0, 0].plot(x, explored, color=COLORS["green"])
    grid[0, 0].text(0.97, 0.9, "SSL", color=COLORS["green"], ha="right",
                    transform=grid[0, 0].transAxes)  # fmt: skip
    grid[0, 1].plot(joint["ssl"], ".-", color=COLORS["green"])
    for ax, history in ((grid[0, 1], joint), (grid[0, 2], tuned)):
        ax.plot(history["ctc"], ".-", color=COLORS["orange"])
    grid[0, 2].text(0.97, 0.9, "CTC", color=COLORS["orange"], ha="right",
                    transform=grid[0, 2].transAxes)  # fmt: skip
    grid[1, 0].text(0.5, 0.5, "SSL alone", ha="center", va="center",
                    transform=grid[1, 0].transAxes)  # fmt: skip
    for ax, row in zip(grid[1, 1:], (gamma, [0.0] * len(tuned["ctc"]))):
        ax.plot(row, ".-", color=COLORS["blue"])
    names = ("1 exploration (recorded)", "2 joint (live)", "3 fine-tuning (live)")
    for column, name in enumerate(names):
        grid[0, column].set_title(name)
        grid[1, column].set_xlabel("step")
        grid[1, column].locator_params("x", integer=True, nbins=5)
    grid[0, 0].set_ylabel("training loss")
    grid[1, 0].set_ylabel("gamma")
    return fig


# -- the recorded comparison --------------------------------------------------------


def over_labels(runs: pd.DataFrame, measure: str = "per") -> Figure:
    """Error rates over the number of labels: means and single runs of every arm."""
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7.6, 3.8))
    found = means(runs, measure, list(SHADES))
    for k, (name, part) in enumerate(found.groupby("name", sort=False)):
        shift = 1.06 ** (k - 2)  # side by side on a logarithmic axis
        x, color = part["n"] * shift, COLORS[SHADES[name]]
        ax.plot(x, part["mean"], "o-", color=color, label=name, zorder=3)
        own = runs[(runs["name"] == name) & (runs["list"] == "comparison")]
        ax.plot(own["n"] * shift, own[measure], "_", color=color, ms=8, alpha=0.7)
    ns = sorted(set(found["n"]))
    ax.set_xscale("log")
    ax.set_xticks(ns, [str(n) for n in ns])
    ax.minorticks_off()
    ax.set(xlabel="labelled utterances n", ylabel=f"{measure.upper()}, new speakers")
    ax.set_ylim(0, None)
    ax.set_title("Dots: means over seeds; dashes: single runs")
    ax.legend(loc="upper right")
    return fig


def differences(
    runs: pd.DataFrame, names: Sequence[str], ns: Sequence[int], other: str = "PT + FT"
) -> Figure:
    """Paired differences to another arm with their 95 % intervals, a column an n."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(
        1,
        len(ns),
        figsize=(2.9 * len(ns), 0.5 * len(names) + 1.3),
        sharex=True,
        sharey=True,
    )
    for ax, n in zip(np.atleast_1d(axes), ns):
        for k, name in enumerate(names):
            try:
                gaps = -effects(runs, name, other, "per", [n])
            except ValueError:  # this arm was not run at this n
                continue
            low, high = interval(gaps) if len(gaps) > 1 else (np.nan, np.nan)
            color = COLORS[SHADES.get(name, "black")]
            ax.plot([low, high], [k, k], color=color, lw=2.5, alpha=0.5)
            ax.plot(gaps, [k] * len(gaps), "|", color=color, ms=9)
            ax.plot(gaps.mean(), k, "o", color=color)
        ax.axvline(0, color=COLORS["black"], lw=0.8)
        ax.set(title=f"n = {n}", xlabel=f"PER minus {other}")
        ax.set_yticks(range(len(names)), names)
        ax.set_ylim(len(names) - 0.4, -0.6)
    return fig


def over_gamma(runs: pd.DataFrame) -> Figure:
    """PER and both losses over the last gamma of BL-JUST: single seeds and means."""
    import matplotlib.pyplot as plt

    swept = (runs["list"] == "sweep") | (
        (runs["list"] == "comparison") & (runs["name"] == "BL-JUST")
    )
    some = _paired(runs[swept & (runs["n"] == _middle(runs))], runs)
    order = sorted(set(some["gamma"]))
    fig, axes = plt.subplots(1, 3, figsize=(9.2, 3.0))
    titles = {"per": "PER", "ssl": "SSL loss, test", "ctc": "CTC loss, test"}
    for ax, (measure, title) in zip(axes, titles.items()):
        for _, part in some.groupby("seed"):
            each = part.groupby("gamma")[measure].mean().reindex(order)
            ax.plot(range(len(order)), each, color=COLORS["sky"], lw=1)
        mean = some.groupby("gamma")[measure].mean().reindex(order)
        ax.plot(range(len(order)), mean, "o-", color=COLORS["blue"])
        ax.set_xticks(range(len(order)), [f"{g:g}" for g in order])
        ax.set(title=title, xlabel="last gamma")
    return fig


def _paired(some: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Those with a labelled subset and fine-tuning seed that the sweep has too."""
    keys = ["seed", "subset", "tune"]
    return some.merge(runs.loc[runs["list"] == "sweep", keys].drop_duplicates())


def _middle(runs: pd.DataFrame) -> int:
    """The n of the sweep."""
    return int(runs.loc[runs["list"] == "sweep", "n"].iloc[0])


def trajectory(curves: pd.DataFrame, runs: pd.DataFrame, name: str) -> Figure:
    """Both losses, gamma and the PER of one kind of run: means over seeds."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(
        1, 3, figsize=(8.4, 2.7), width_ratios=(3, 2, 1), layout="none"
    )
    fig.subplots_adjust(0.07, 0.2, 0.99, 0.86, wspace=0.3)
    own = curves[curves["name"] == name]
    most = curves["step"].max()
    for level in ("ssl", "ctc", "pseudo"):
        line = own[own[level].notna()]
        if len(line):
            color = COLORS[LEVELS[level]]
            axes[0].plot(line["step"], line[level], color=color, label=level)
    highest = 1.05 * float(curves[["ssl", "ctc", "pseudo"]].max(axis=None))
    axes[0].set(xlim=(0, most), ylim=(0, highest), xlabel="step")
    axes[0].set_title(f"{name}: losses")
    axes[0].legend(loc="upper right", fontsize=8)
    some = own[own["gamma"].notna()]
    axes[1].plot(some["step"], some["gamma"], ".", color=COLORS["blue"], ms=4)
    top = max(1.0, float(curves["gamma"].max()))
    axes[1].set(
        xlim=(0, most), xlabel="step", title="gamma", ylim=(-0.05 * top, 1.1 * top)
    )
    rows = runs[(runs["name"] == name) & (runs["n"] == _middle(runs))]
    rows = _paired(rows[rows["list"].isin(("comparison", "sweep"))], runs)
    axes[2].plot(np.zeros(len(rows)), rows["per"], "_", color=COLORS["black"], ms=14)
    axes[2].plot(0, rows["per"].mean(), "o", color=COLORS["orange"])
    axes[2].set(xlim=(-1, 1), xticks=[], ylim=(0, 1.2 * _largest(runs)), title="PER")
    return fig


def _largest(runs: pd.DataFrame) -> float:
    at = (runs["n"] == _middle(runs)) & runs["list"].isin(("comparison", "sweep"))
    return float(runs.loc[at, "per"].max())


# -- the pair -----------------------------------------------------------------------


def pair_picture(
    pair: Any,
    path: Any,
    stages: Sequence[Stage],
    bars: Mapping[str, float],
    title: str,
) -> Figure:
    """A path in the plane of both losses with the front, and the error of each end.

    pair; path: of `pair.walk`, means over its worlds are drawn; stages: of the path;
    bars: errors by name.
    """
    import matplotlib.pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(8.2, 3.1), layout="none")
    fig.subplots_adjust(0.08, 0.17, 0.98, 0.89, wspace=0.5)
    front = [pair.weighted(10.0**k) for k in np.linspace(-3, 3, 25)]
    points = [(float(pair.f(t).mean()), float(pair.g(t).mean())) for t in front]
    left.plot(*zip(*points), color=COLORS["grey"], lw=4, alpha=0.4, label="front")
    place = np.stack([pair.f(path).mean(-1), pair.g(path).mean(-1)], -1)
    begin = 0
    for name, end in _parts(stages):
        color = {"exploration": "green", "joint": "blue", "tuning": "orange"}[name]
        some = place[begin : end + 1]
        left.plot(*some.T, color=COLORS[color], label=name)
        begin = end
    left.plot(*place[-1], "o", color=COLORS["black"], ms=5)
    left.set(xscale="log", yscale="log", xlabel="f (upper level)", title=title)
    left.set(ylabel="g (lower level)", xlim=(2e-4, 30), ylim=(1e-6, 60))
    left.legend(loc="lower left", fontsize=8)
    names = list(bars)[::-1]
    colors = [COLORS["orange" if "BL-JUST" in name else "grey"] for name in names]
    right.barh(names, [bars[name] for name in names], color=colors)
    for k, name in enumerate(names):
        right.text(bars[name] + 0.3, k, f"{bars[name]:.1f}", va="center", fontsize=8)
    worlds = f"Mean over {len(pair.truth)} worlds"
    right.set(xlim=(0, 30), xlabel="squared error of theta", title=worlds)
    right.grid(False)
    return fig


def _parts(stages: Sequence[Stage]) -> list[tuple[str, int]]:
    """The phases of an arm with the step at which each ends."""
    found, total = [], 0
    for stage in stages:
        alone = getattr(stage.recipe, "turn", 0)
        if any(stage.ssl):
            found += [("exploration", total + alone)] if alone else []
            found += [("joint", total + stage.steps)] if alone < stage.steps else []
        else:
            found.append(("tuning", total + stage.steps))
        total += stage.steps
    return found
