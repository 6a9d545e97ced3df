"""The paper-size runs: sequential CIFAR-10 and Speech Commands by initialisation.

`full_run` trains one model, resumes from its checkpoint, and asks what pure tones at
the frequencies of its first and of its trained spectrum do to it; `full_table` runs
many and never repeats a finished one.
Where our models differ from the authors': each channel owns its poles (they share them
at first, as n_ssm = 1 does for good); speech has LayerNorm for batch norm; a
bidirectional block adds two whole layers; the cosine ends with the last epoch.
Sources: 2206.11893 and its authors' code (settings), 2310.01698 (tones), 2111.00396
(half the sampling rate without training).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tarfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset, Subset

from lib.hippo import transition
from lib.kit.cache import CacheError, cache_folder, download
from lib.kit.checks import choice, count, need
from lib.ssm_init.data import Splits, sequential_cifar, speech_commands
from lib.ssm_init.layers import S4D, Classifier, discretize
from lib.ssm_init.theory import legs_half, optimise_perturbation
from lib.ssm_init.training import (
    VARIANTS,
    accuracy,
    free_parameters,
    layer_maker,
    tones,
    train,
)

if TYPE_CHECKING:
    import pandas

# The ablations of 2206.11893; warm-up in epochs (900 steps of CIFAR are one). The
# authors name no weight decay for speech: AdamW's default.
TASKS: dict[str, dict[str, Any]] = {
    "cifar": {
        **{"depth": 4, "width": 128, "N": 64, "readout": "mean"},
        **{"bidirectional": True, "prenorm": False, "dropout": 0.1},
        **{"lr": 0.01, "ssm_lr": 1e-3, "weight_decay": 0.01},
        **{"batch": 50, "epochs": 100, "warmup": 1.0},
    },
    "speech_commands": {
        **{"depth": 4, "width": 128, "N": 64, "readout": "last"},
        **{"bidirectional": False, "prenorm": True, "dropout": 0.0},
        **{"lr": 0.004, "ssm_lr": 1e-3, "weight_decay": 0.01},
        **{"batch": 32, "epochs": 10, "warmup": 1.0},
    },
}
OPTIMISED = "legs_ptd_opt"  # S4-PTD with E chosen by gradient descent
ALL_KINDS = {**VARIANTS, OPTIMISED: {"kind": "legs_ptd"}}
ARCHIVES = {  # address, SHA-256, folder inside
    "cifar": (
        "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
        "cifar-10-batches-py",
    ),
    "speech_commands": (
        "https://storage.googleapis.com/download.tensorflow.org/data/"
        "speech_commands_v0.02.tar.gz",
        "af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58",
        "",
    ),
}
TURNS = 4  # a tone makes at least so many turns in a sequence
LOUD = 0.1  # of a tone, in standard deviations of the training inputs


# -- data ---------------------------------------------------------------------------


def load(
    task: str,
    rows: int | None = None,
    *,
    folder: str | Path | None = None,
    **options,
) -> Splits:
    """The real data of a task, from a folder or fetched once into the kit's cache.

    task: of TASKS; rows: at most so many rows of each part, evenly spaced; folder: the
    unpacked archive, None for the cache (0.2 GB of CIFAR, 2.4 GB of speech are fetched
    if absent); options: of `sequential_cifar` (colour is True here) or
    `speech_commands`. Returns Splits: x (1024, 3) or (16000, 1).
    Raises ValueError, FileNotFoundError or CacheError in a sentence.
    Source: Krizhevsky 2009; 1804.03209.
    """
    choice("The task", task, TASKS)
    place = _unpacked(task) if folder is None else Path(folder)
    if task == "cifar":
        splits = sequential_cifar(place, **{"colour": True, **options})
    else:
        splits = speech_commands(place, **options)
    return splits if rows is None else some(splits, rows)


def some(splits: Splits, rows: int) -> Splits:
    """The same splits with at most `rows` evenly spaced rows of each part.

    splits; rows: at least 1. Returns Splits. Raises ValueError for rows.
    Source: this collection.
    """
    count("rows", rows)
    parts = ("train", "validation", "test")
    return replace(
        splits, **{part: _some(getattr(splits, part), rows) for part in parts}
    )


def _some(data: Dataset, rows: int) -> Dataset:
    if len(data) <= rows:
        return data
    return Subset(data, (np.arange(rows) * len(data) // rows).tolist())


def _unpacked(task: str) -> Path:
    """The folder of a task's archive in the cache, fetched and unpacked once."""
    from filelock import FileLock

    url, sha256, inside = ARCHIVES[task]
    name = url.rpartition("/")[2]
    home = cache_folder() / name.removesuffix(".tar.gz")
    if not home.exists():
        archive = download(url, name, sha256)
        with FileLock(home.with_name(home.name + ".lock")):
            if not home.exists():
                _unpack(archive, home)
    return home / inside


def _unpack(archive: Path, home: Path) -> None:
    """Unpack so that the folder appears under its name only when it is whole."""
    part = home.with_name(f".{home.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
    try:
        with tarfile.open(archive) as packed:
            packed.extractall(part, filter="data")
        os.replace(part, home)
    except (OSError, tarfile.TarError) as error:
        shutil.rmtree(part, ignore_errors=True)
        raise CacheError(
            f"{archive.name} could not be unpacked ({error}). Free some space, or set "
            "COLLECTION_CACHE to a folder elsewhere."
        ) from error


# -- models -------------------------------------------------------------------------


def settings_of(task: str, kind: str, seed: int, **changes) -> dict[str, Any]:
    """Everything that decides a run: the task's settings with the reader's changes.

    task: of TASKS; kind: of ALL_KINDS; seed; changes: epochs, rows, width, depth, where
    None keeps the paper's. Returns one dictionary. Raises ValueError for names and
    numbers. Source: this collection.
    """
    choice("The task", task, TASKS)
    choice("The initialisation", kind, ALL_KINDS)
    count("seed", seed, 0)
    given = {name: value for name, value in changes.items() if value is not None}
    for name, value in given.items():
        choice("The change", name, ("epochs", "rows", "width", "depth"))
        count(name, value)
    return {"task": task, "kind": kind, "seed": seed, "rows": 0} | TASKS[task] | given


def full_classifier(settings: Mapping, channels: int, classes: int) -> Classifier:
    """The model of a run, with every weight drawn from its seed.

    settings: of `settings_of`; channels: of the input; classes. The linear maps and the
    steps are the same for every kind. Returns a Classifier. Raises ValueError where
    legs_ptd is unstable. Source: 2206.11893.
    """
    names = ("readout", "bidirectional", "prenorm", "dropout")
    options = {name: settings[name] for name in names}
    sizes = (channels, settings["width"], settings["depth"], classes)
    layer = _layers(settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings["seed"])
        return Classifier(*sizes, layer=layer, **options)


def _layers(settings: Mapping) -> Callable[[], S4D]:
    """The layers of a run; LegS-PTD's optimised perturbation has a seed of its own."""
    kind, seed, N = (settings[name] for name in ("kind", "seed", "N"))
    chosen = {"N": N, "H": settings["width"]} | ALL_KINDS[kind]
    if kind == OPTIMISED:
        own = np.random.default_rng([seed, 1])
        chosen["E"] = optimise_perturbation(transition("legs", N)[0], rng=own)[0]
    return layer_maker(seed, **chosen)


# -- tones --------------------------------------------------------------------------


def legs_tones(N: int, dt: float, rule: str = "zoh", modes: int = 3) -> np.ndarray:
    """Where S4D-LegS resonates after discretisation, fastest mode of its poles first.

    N: even state size; dt: step; rule: "zoh" (omega dt, folded into 0 .. pi) or
    "bilinear" (2 atan(omega dt / 2), which never folds); modes: how many.
    Returns theta (modes,) in rad a step. Raises ValueError for N or the rule.
    Source: 2310.01698; 2206.11893 (the poles).
    """
    choice("The rule", rule, ("zoh", "bilinear"))
    omega = legs_half(N)[0].imag[:modes]
    if rule == "bilinear":
        return 2 * np.arctan(omega * dt / 2)
    return np.abs(np.angle(np.exp(1j * omega * dt)))


def median_step(layer: S4D) -> float:
    """The step of the layer's median channel (the lower of two): a real channel's, as a
    spike is too narrow to be hit in between. layer: an S4D. Returns a number."""
    dt = np.sort(torch.exp(layer.log_dt.detach().cpu().double()).numpy())
    return float(dt[(len(dt) - 1) // 2])


def _precise(layer: S4D) -> S4D:
    """A copy in float64 on the processor, wherever the layer is trained."""
    return deepcopy(layer).cpu().double()


def resonances(layer: S4D, length: int, modes: int = 3) -> tuple[np.ndarray, ...]:
    """The pole frequencies at which single channels answer a tone most strongly.

    layer: an S4D, or an S4, whose candidates are its normal part's poles (S4D's spikes,
    where S4 itself is quiet); length: of the sequences; modes: at most so many.
    A mode with discrete pole a turns by theta = |arg a| in [0, pi] a step, so rule and
    aliasing are in it. Its gain is |sum_l K_l e^{-i theta l}|, K the kernel of its
    channel over one sequence (without D): |C B| / |Re A| for an isolated mode that
    settles within the sequence, less where modes cancel, as S4-PTD's do. The strongest
    of all H n are taken that turn at least TURNS times in a sequence and stay as far
    from pi and from each other.
    Returns theta and gain, strongest first (fewer, or none, for real or slow poles).
    Raises nothing of its own. Source: derived here, after 2310.01698.
    """
    layer = _precise(layer)
    with torch.no_grad():
        B, dt = torch.view_as_complex(layer.B), layer.log_dt.exp()
        log_ab, _ = discretize(layer.poles(), B, dt, layer.rule, length)
        spectrum = torch.fft.rfft(layer.kernel(length), 4 * length).abs().numpy()
    theta = np.abs(np.angle(np.exp(1j * log_ab.imag.numpy())))
    bins = np.rint(theta * 2 * length / np.pi).astype(int)
    gain = np.take_along_axis(spectrum, bins, axis=1).ravel()
    theta, apart, taken = theta.ravel(), 2 * np.pi * TURNS / length, []
    for k in np.argsort(-gain, kind="stable"):
        far = all(abs(theta[k] - theta[other]) > apart for other in taken)
        if far and apart <= theta[k] <= np.pi - apart:
            taken.append(k)
        if len(taken) == modes:
            break
    return theta[taken], gain[taken]


def quiet_tone(layer: S4D, length: int, near: Sequence[float]) -> float:
    """A control between the poles: where the whole layer answers least.

    layer: an S4D or S4; length: of the sequences; near: tones (m,) whose band, from
    half the lowest to 3/2 of the highest, is searched on the grid 2 pi k / length for
    the smallest root mean square over channels of the kernel's spectrum.
    Returns theta in rad a step. Raises nothing of its own. Source: this collection.
    """
    with torch.no_grad():
        spectrum = torch.fft.rfft(_precise(layer).kernel(length)).abs().square()
    grid = 2 * np.pi * np.arange(spectrum.shape[-1]) / length
    edge = 2 * np.pi * TURNS / length
    low = max(min(near) / 2, edge)
    high = min(max(max(near) * 1.5, 2 * low), np.pi - edge)
    inside = np.flatnonzero((grid >= low) & (grid <= high))
    gain = spectrum.mean(dim=0).numpy()
    return float(grid[inside[np.argmin(gain[inside])]])


def attack(layer: S4D, length: int, fallback: Sequence[float]) -> np.ndarray:
    """The three tones of `resonances`; where there are fewer, the fallback's follow.

    layer; length: of the sequences; fallback: (3,). Returns theta (3,). Real poles have
    no resonance but 0: they meet the fallback only. Source: this collection.
    """
    theta, _ = resonances(layer, length)
    return np.concatenate([theta, fallback])[:3]


def robustness(
    model: Classifier, data: Dataset, theta: Mapping[str, float], loud: float, **options
) -> dict[str, float]:
    """The accuracy of a model with one tone after the other added to every input.

    model; data: as for `accuracy`; theta: rad a step by name; loud: the amplitude;
    options: batch, workers of `accuracy`. Returns {name: fraction}. Raises ValueError
    for empty data. Source: 2310.01698 (a sinusoid of 10 % at S4D's spikes).
    """
    return {
        name: accuracy(model, data, change=tones([value], loud), **options)
        for name, value in theta.items()
    }


# -- runs ---------------------------------------------------------------------------


def full_run(
    task: str,
    kind: str,
    seed: int,
    *,
    data: Splits | None = None,
    device: str | torch.device = "cpu",
    epochs: int | None = None,
    rows: int | None = None,
    width: int | None = None,
    depth: int | None = None,
    folder: str | Path | None = None,
    workers: int = 0,
    progress: Callable[[int, int, float], None] | None = None,
) -> dict[str, Any]:
    """Train one model at the paper's size, and measure what tones do to it.

    task: of TASKS; kind: of ALL_KINDS; seed: of weights and order; data: None for
    `load(task)`; epochs, rows (of each part), width, depth: smaller than the paper's;
    folder: keeps a checkpoint after every epoch and the finished row, so that a killed
    run goes on and a finished one is only read (one folder, one data set); workers: of
    the data loader; progress: called with step, steps and loss.
    Returns one row: the settings, parameters, loss (last epoch), validation, accuracy
    (test), half_rate (speech: every second sample, steps doubled), and for each tone
    theta_NAME and NAME, the test accuracy with it. The tones, alone and of LOUD
    standard deviations of the input: legs_0..2, the spikes of S4D-LegS under ZOH at the
    median step of the first layer (the same for every kind with the usual steps);
    initial_0..2 and trained_0..2, the `attack` on the first layer before and after
    training; control, `quiet_tone` of the trained layer.
    Raises ValueError for names, numbers or another run's row; FloatingPointError where
    the loss is not finite; what `load` raises. Source: 2206.11893; 2310.01698.
    """
    settings = settings_of(
        task, kind, seed, epochs=epochs, rows=rows, width=width, depth=depth
    )
    stored = None if folder is None else Path(folder) / f"{_name(settings)}.json"
    row = _read(stored, data, rows)
    if row is not None:
        return row
    data = load(task) if data is None else data
    data = data if rows is None else some(data, rows)
    checkpoint = None if stored is None else stored.with_suffix(".pt")
    row = _measured(settings, data, device, workers, checkpoint, progress)
    _write(stored, row)
    return row


def _measured(settings, data: Splits, device, workers, checkpoint, progress) -> dict:
    """One run without its bookkeeping."""
    length, channels = data.train[0][0].shape
    model = full_classifier(settings, channels, len(data.classes)).to(device)
    first = model.blocks[0].layer
    legs = legs_tones(settings["N"], median_step(first))
    theta = {"legs": legs, "initial": attack(first, length, legs)}
    names = ("epochs", "lr", "ssm_lr", "weight_decay", "batch", "seed", "warmup")
    how = {name: settings[name] for name in names}
    how |= {"checkpoint": checkpoint, "on_step": progress, "workers": workers}
    history = train(model, data.train, **how)
    theta["trained"] = attack(first, length, legs)
    named = {
        f"{k}_{m}": float(v) for k, all_ in theta.items() for m, v in enumerate(all_)
    }
    named["control"] = quiet_tone(first, length, theta["trained"])
    options = {"batch": settings["batch"], "workers": workers}
    row = dict(settings) | {"train": len(data.train), "test": len(data.test)}
    row |= {"parameters": free_parameters(model), "loss": history["loss"][-1]}
    empty = len(data.validation) == 0
    row["validation"] = (
        math.nan if empty else accuracy(model, data.validation, **options)
    )
    row["accuracy"] = accuracy(model, data.test, **options)
    if settings["task"] == "speech_commands":
        row["half_rate"] = accuracy(model, data.test, rate=2.0, change=_half, **options)
    loud = LOUD * _deviation(data.train)
    row |= {f"theta_{name}": value for name, value in named.items()}
    return row | robustness(model, data.test, named, loud, **options)


def _half(x: torch.Tensor) -> torch.Tensor:
    return x[:, ::2]


def _deviation(data: Dataset, rows: int = 256) -> float:
    part = _some(data, rows)
    return float(torch.cat([part[k][0].flatten() for k in range(len(part))]).std())


def _name(settings: Mapping) -> str:
    """A run's file name: readable, with a digest of all its settings."""
    every = dict(settings) | {"variant": ALL_KINDS[settings["kind"]]}
    text = json.dumps(every, sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return "-".join(str(settings[k]) for k in ("task", "kind", "seed")) + f"-{digest}"


def _read(path: Path | None, data: Splits | None, rows: int | None) -> dict | None:
    """A finished row, or None where there is none (or half a file)."""
    if path is None or not path.exists():
        return None
    try:
        row = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError:
        return None
    if data is not None:
        data = data if rows is None else some(data, rows)
        sizes = {"train": len(data.train), "test": len(data.test)}
        other = [k for k in sizes if row.get(k, sizes[k]) != sizes[k]]
        need(
            not other,
            f"{path.name} was measured on other data: "
            + ", ".join(f"{row[k]} {k} rows, now {sizes[k]}" for k in other)
            + ". Give another folder.",
        )
    return row


def _write(path: Path | None, row: dict) -> None:
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_text(json.dumps(row), encoding="utf-8")
    os.replace(part, path)


def full_table(
    tasks: Iterable[str] = ("cifar",),
    kinds: Iterable[str] = ("legs_dplr", "legs", "lin", "real_matched", "legs_ptd"),
    seeds: Iterable[int] = range(3),
    *,
    data: Mapping[str, Splits] | None = None,
    folder: str | Path | None = None,
    bar: bool = False,
    on_run: Callable[[dict], None] | None = None,
    **options,
) -> pandas.DataFrame:
    """One row for every task, seed and kind; what the folder holds is not run again.

    tasks: of TASKS; kinds: of ALL_KINDS; seeds; data: Splits by task, None for `load`
    (only when something is left to run); folder: as for `full_run`; bar: a progress bar
    on stderr; on_run: called with every row; options: device, epochs, rows, width,
    depth, workers of `full_run`. A run whose loss is not finite gives a row with that
    sentence under "failed" and NaN for its measures; the others go on.
    Returns the table. Raises ValueError for a name before anything is run.
    Source: table of the notebook; 2206.11893.
    """
    import pandas as pd
    from tqdm.auto import tqdm

    kinds, seeds = list(kinds), list(seeds)
    runs = [(t, k, s) for t in tasks for s in seeds for k in kinds]
    sizes = {name: options.get(name) for name in ("epochs", "rows", "width", "depth")}
    every = [settings_of(*run, **sizes) for run in runs]
    loaded, rows = dict(data or {}), []
    with tqdm(total=len(runs), disable=not bar) as shown:
        for run, settings in zip(runs, every):
            if run[0] not in loaded and not _finished(folder, settings):
                loaded[run[0]] = load(run[0])
            rows.append(_one(run, settings, loaded, folder, shown, options))
            shown.update()
            if on_run is not None:
                on_run(rows[-1])
    return pd.DataFrame(rows)


def _finished(folder: str | Path | None, settings: Mapping) -> bool:
    path = None if folder is None else Path(folder) / f"{_name(settings)}.json"
    return _read(path, None, None) is not None


def _one(run: tuple, settings: dict, loaded: dict, folder, shown, options) -> dict:
    """One run of a table: its row, or a row that says why there is none."""

    def progress(step: int, steps: int, loss: float) -> None:
        text = f"{' '.join(str(word) for word in run)}: {step}/{steps}, {loss:.3f}"
        shown.set_postfix_str(text, refresh=False)

    how = {"data": loaded.get(run[0]), "folder": folder, "progress": progress}
    try:
        return full_run(*run, **{**options, **how})
    except FloatingPointError as error:
        row = settings | {"failed": str(error)}
        if folder is not None:
            _write(Path(folder) / f"{_name(settings)}.json", row)
        return row
