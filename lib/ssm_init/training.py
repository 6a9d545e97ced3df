"""Training that shows what an initialisation is worth, from digits to full size.

`train` reads like the algorithm: AdamW with the recurrences' parameters apart, linear
warm-up, then cosine, clipped gradients. Batches depend on (seed, epoch) only, so a run
that was killed and continued from its checkpoint ends with the same bits on the same
machine. `tune` and `digits_by_init` give every initialisation the same treatment.
Sources: 2206.11893 (protocol), state-spaces/s4 (parameter groups).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from lib.kit.checkpoints import finite, mixed, resume, save
from lib.kit.checks import choice, need
from lib.ssm_init.data import Splits, digits
from lib.ssm_init.inits import KINDS, init_diag
from lib.ssm_init.layers import S4, S4D, Classifier, init_dplr, param_groups

if TYPE_CHECKING:
    import pandas

# What the digits table compares: a kind of `init_diag` with its options, or S4.
VARIANTS: dict[str, dict[str, Any]] = {
    **{kind: {"kind": kind} for kind in KINDS},
    "real_matched": {"kind": "real", "full": True, "match_variance": True},
    "rand": {"kind": "rand", "real": "normal", "imag": "normal"},
    "real_fixed": {"kind": "real", "layer": {"train_im": False}},
    "legs_dplr": {"kind": "dplr"},
    "lin_coarse": {"kind": "lin", "dt_range": (1e-1, 1.0)},
    "lin_fine": {"kind": "lin", "dt_range": (1e-5, 1e-4)},
}
LEARNING_RATES = (1e-3, 4e-3, 1e-2)
ADVICE = "lower lr or ssm_lr, clip harder, or look for growing poles (Re A > 0)"


# -- one run ------------------------------------------------------------------------


def batches(
    data: Dataset, order: Sequence[int], batch: int, workers: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """The rows of a data set in a given order, some at a time.

    data: items (x, y), or with a method fetch(rows) as in `data.Arrays`; order: row
    numbers; batch: how many at once; workers: processes for data that is read from
    files. Yields x (batch, length, channels), y (batch,). Source: this collection.
    """
    rows = torch.as_tensor(order)
    if hasattr(data, "fetch"):
        yield from (data.fetch(part) for part in rows.split(batch))
    else:
        part = Subset(data, rows.tolist())
        yield from DataLoader(part, batch_size=batch, num_workers=workers)


def schedule(step: int, steps: int, warm: float) -> float:
    """The factor of the learning rate: linear warm-up, then half a cosine to zero.

    step: from 0; steps: of the whole run; warm: steps of warm-up. Returns a factor in
    (0, 1]. Raises nothing of its own. Source: 2206.11893's training protocol.
    """
    if step < warm:
        return (step + 1) / max(warm, 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(steps - warm, 1)))


def accuracy(
    model: nn.Module,
    data: Dataset,
    *,
    batch: int = 200,
    rate: float = 1.0,
    change: Callable[[Tensor], Tensor] | None = None,
    workers: int = 0,
) -> float:
    """The share of a data set that a model classifies correctly.

    model: a Classifier; data: as for `batches`; rate: 2 for data at half the sampling
    rate it was trained at; change: applied to every x (batch, length, channels), for
    example added noise. Returns a fraction. Raises ValueError for an empty data set.
    """
    need(len(data) > 0, "The data set is empty; there is no accuracy to measure.")
    place, was = next(model.parameters()).device, model.training
    model.eval()
    right = 0
    with torch.no_grad():
        for x, y in batches(data, range(len(data)), batch, workers):
            x = (x if change is None else change(x)).to(place)
            right += int((model(x, rate).argmax(dim=-1).cpu() == y).sum())
    model.train(was)
    return right / len(data)


def train(
    model: nn.Module,
    data: Dataset,
    *,
    epochs: int = 10,
    lr: float = 4e-3,
    ssm_lr: float = 1e-3,
    weight_decay: float = 0.01,
    batch: int = 50,
    seed: int = 0,
    warmup: float = 1.0,
    clip: float = 1.0,
    validation: Dataset | None = None,
    workers: int = 0,
    on_step: Callable[[int, int, float], None] | None = None,
    checkpoint: str | Path | None = None,
) -> dict[str, list[float]]:
    """Train a classifier in place; continue from a checkpoint if there is one.

    model: a Classifier, on its device; data: items (x (length, channels), y); lr,
    ssm_lr, weight_decay: see `param_groups`; batch; seed: of the order of the rows and
    of dropout; warmup: epochs of linear warm-up before the cosine; clip: norm of the
    gradient; validation: measured after every epoch; on_step: called with the step, the
    number of steps and the loss; checkpoint: a file written after every epoch.
    Returns {"loss": one an epoch, "accuracy": one an epoch, empty without validation}.
    Raises ValueError for settings or another run's checkpoint, FloatingPointError when
    the loss is not finite. Source: 2206.11893's protocol.
    """
    need(epochs >= 1 and batch >= 1, f"epochs is {epochs}, batch {batch}; give >= 1.")
    need(clip > 0 and warmup >= 0, f"clip is {clip}, warmup {warmup}; give positive.")
    need(len(data) >= 1, "The training data set is empty; there is nothing to learn.")
    place = next(model.parameters()).device
    groups = param_groups(model, lr, ssm_lr, weight_decay)
    rates = [group["lr"] for group in groups]
    optimiser = torch.optim.AdamW(groups, fused=place.type in ("cpu", "cuda"))
    each = -(-len(data) // batch)
    settings = dict(epochs=epochs, batch=batch, seed=seed, warmup=warmup, clip=clip)
    settings |= dict(lr=lr, ssm_lr=ssm_lr, weight_decay=weight_decay, rows=len(data))
    history: dict[str, list[float]] = {"loss": [], "accuracy": []}
    begin = resume(checkpoint, model, optimiser, settings, history)
    model.train()
    for epoch in range(begin, epochs):
        order = torch.randperm(
            len(data), generator=torch.Generator().manual_seed(mixed(seed, epoch))
        )
        torch.manual_seed(mixed(seed, epoch))  # dropout
        total = 0.0
        for k, (x, y) in enumerate(batches(data, order, batch, workers)):
            step = epoch * each + k
            factor = schedule(step, epochs * each, warmup * each)
            for group, full in zip(optimiser.param_groups, rates, strict=True):
                group["lr"] = full * factor
            optimiser.zero_grad()
            loss = nn.functional.cross_entropy(model(x.to(place)), y.to(place))
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimiser.step()
            total += finite(loss.item(), step, ADVICE) * len(y)
            if on_step is not None:
                on_step(step + 1, epochs * each, loss.item())
        history["loss"].append(total / len(data))
        if validation is not None:
            history["accuracy"].append(accuracy(model, validation, workers=workers))
        save(checkpoint, model, optimiser, settings, history)
    return history


# -- what training did to the recurrence --------------------------------------------


def snapshot(model: nn.Module) -> list[dict[str, np.ndarray]]:
    """The poles, timescales and kernels of every S4D layer, as copies.

    model: any module. Returns one {"A": (H, n) complex, "dt": (H,), "K": (H, 256)} a
    layer, K the sampled kernel without D.
    Raises ValueError where there is no such layer. Source: this collection.
    """
    layers = [module for module in model.modules() if isinstance(module, S4D)]
    need(bool(layers), "The model holds no S4D layer; there are no poles to look at.")
    with torch.no_grad():
        return [
            {
                "A": layer.poles().cpu().numpy().copy(),
                "dt": np.exp(layer.log_dt.detach().cpu().double().numpy()),
                "K": layer.kernel(256).cpu().numpy(),
            }
            for layer in layers
        ]


def drift(before: list[dict], after: list[dict]) -> pandas.DataFrame:
    """How far training moved poles and timescales, and whether their order survived.

    before, after: two snapshots of one model. Returns one row a layer and quantity
    ("Re A", "Im A", "dt"): median size before and after, the median move relative to
    the median size before, and Spearman's rank correlation (NaN where all values were
    equal). Raises ValueError for different models. Source: this collection.
    """
    import pandas as pd

    same = len(before) == len(after) and all(
        b["A"].shape == a["A"].shape for b, a in zip(before, after)
    )
    need(same, "The two snapshots are of different models; take both of one.")
    looks = {
        "Re A": lambda s: s["A"].real.ravel(),
        "Im A": lambda s: s["A"].imag.ravel(),
        "dt": lambda s: s["dt"],
    }
    rows = []
    for layer, (b, a) in enumerate(zip(before, after)):
        for quantity, look in looks.items():
            x, y = look(b), look(a)
            sizes = [float(np.median(np.abs(v))) for v in (x, y)]
            move = float(np.median(np.abs(y - x)))
            relative = move / sizes[0] if sizes[0] else math.nan
            rows.append((layer, quantity, *sizes, relative, _rank_correlation(x, y)))
    columns = ["layer", "quantity", "before", "after", "move", "rank_correlation"]
    return pd.DataFrame(rows, columns=columns)


def free_parameters(model: nn.Module) -> int:
    """How many real numbers training can change.

    model: any module. Imaginary parts of a layer whose A, B and C are all real count
    nothing: their gradients are exactly zero. Returns a count. Source: derived here.
    """
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    for layer in (m for m in model.modules() if isinstance(m, S4D)):
        parts = {layer.A_im: 1, layer.B: 2, layer.C: 2}  # what to halve
        imaginary = [p if k == 1 else p[..., 1] for p, k in parts.items()]
        if not any(bool(p.any()) for p in imaginary):
            count -= sum(p.numel() // k for p, k in parts.items() if p.requires_grad)
    return count


def tones(theta: Sequence[float], amplitude: float = 0.1) -> Callable[[Tensor], Tensor]:
    """Noise for `accuracy(change=...)`: a sum of pure tones on every channel.

    theta: frequencies in rad a step; amplitude: of each, in units of the input's
    standard deviation. Returns a map of x (batch, length, channels) to the same.
    Raises ValueError without frequencies. Source: 2310.01698 (Fourier noise at the
    spikes of S4D's transfer function).
    """
    need(len(theta) > 0, "theta is empty; give at least one frequency in rad a step.")

    def add(x: Tensor) -> Tensor:
        k = torch.arange(x.shape[1], dtype=torch.float64)[:, None]
        wave = torch.cos(k * torch.as_tensor(theta, dtype=torch.float64)).sum(dim=1)
        return x + amplitude * wave.to(x.dtype)[:, None]

    return add


def _rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    if len(x) < 2 or np.ptp(x) <= 1e-6 * np.abs(x).max() or np.ptp(y) == 0:
        return math.nan
    from scipy.stats import spearmanr

    return float(spearmanr(x, y).statistic)


# -- digits by initialisation -------------------------------------------------------


def digit_classifier(
    kind: str,
    seed: int,
    *,
    readout: str = "last",
    N: int = 32,
    H: int = 32,
    n_layers: int = 2,
    **options,
) -> Classifier:
    """A small classifier of digits whose recurrences start from one initialisation.

    kind: one of VARIANTS; seed: of every weight, the same linear maps for every kind;
    readout: "last" or "mean"; N: state size; H: channels; n_layers; options: of
    `init_diag`, replacing the variant's, for example dt_range; layer: a dictionary of
    options of S4D, for example {"real": "none"}.
    Returns a Classifier. Raises ValueError for an unknown kind or size.
    Source: figure R4 of the notebook, after 2206.11893.
    """
    choice("The initialisation", kind, tuple(VARIANTS))
    chosen = {"N": N, "H": H} | VARIANTS[kind] | options
    layer = layer_maker(seed, **chosen)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Classifier(1, H, n_layers, 10, readout, layer=layer)


def layer_maker(
    seed: int, *, layer: Mapping | None = None, **chosen
) -> Callable[[], S4D]:
    """Makes one sequence layer after another, all drawn from one seed.

    seed; layer: options of S4D or S4, for example {"real": "none"}; chosen: options of
    `init_diag`, or of `init_dplr` where its kind is "dplr".
    Returns a function without arguments. Raises as those do, when called.
    Source: this collection.
    """
    start = chosen | {"rng": np.random.default_rng(seed)}
    if start["kind"] == "dplr":
        del start["kind"]
        return lambda: S4(init_dplr(**start), **(layer or {}))
    return lambda: S4D(init_diag(**start), **(layer or {}))


def digits_by_init(
    kinds: Iterable[str] = ("lin", "legs", "real"),
    seeds: Iterable[int] = range(3),
    *,
    length: int = 64,
    readouts: Sequence[str] = ("last",),
    epochs: int = 10,
    lr: float | Mapping[str, float] = 4e-3,
    batch: int = 50,
    on_run: Callable[[dict, Classifier, list[dict]], None] | None = None,
    folder: str | Path | None = None,
    device: str | torch.device = "cpu",
    **model,
) -> pandas.DataFrame:
    """Accuracy on sequential digits for every initialisation, read-out and seed.

    kinds: of VARIANTS; seeds: of split, weights and order; length: 64 or 256; readouts:
    "last", "mean"; epochs, batch: see `train`; lr: for all, or one for each kind (what
    `best_rate` returns); on_run: called with the row, the trained model and its first
    snapshot; folder: for checkpoints; device; model: N, H, n_layers of
    `digit_classifier`. Returns one row a run: kind, readout, length, seed, lr, epochs,
    parameters, loss (training, last epoch), accuracy (test). Raises ValueError for
    names. Source: figure R4 of the notebook.
    """
    import pandas as pd

    rows, kinds, seeds = [], list(kinds), list(seeds)
    for seed in seeds:
        data = digits(length, seed)
        for readout, kind in ((r, k) for r in readouts for k in kinds):
            rate = lr[kind] if isinstance(lr, Mapping) else lr
            row = {"kind": kind, "readout": readout, "length": length, "seed": seed}
            row |= {"lr": rate, "epochs": epochs}
            file = "-".join(f"{value}" for value in row.values()) + ".pt"
            path = None if folder is None else Path(folder) / file
            settings = {"epochs": epochs, "lr": rate, "batch": batch}
            made = _digit_run(row, data, settings, path, device, model)
            rows.append(made[0])
            if on_run is not None:
                on_run(*made)
    return pd.DataFrame(rows)


def _digit_run(row: dict, data: Splits, settings, path, device, options) -> tuple:
    """One fit: the completed row, the trained model and its first snapshot."""
    model = digit_classifier(
        row["kind"], row["seed"], readout=row["readout"], **options
    ).to(device)
    start = snapshot(model)
    history = train(model, data.train, seed=row["seed"], checkpoint=path, **settings)
    row = row | {"parameters": free_parameters(model), "loss": history["loss"][-1]}
    return row | {"accuracy": accuracy(model, data.test)}, model, start


def tune(
    kinds: Iterable[str],
    lrs: Sequence[float] = LEARNING_RATES,
    seeds: Iterable[int] = (0,),
    *,
    length: int = 64,
    readout: str = "last",
    epochs: int = 10,
    batch: int = 50,
    validation: int = 280,
    device: str | torch.device = "cpu",
    **model,
) -> pandas.DataFrame:
    """The same learning rates for every initialisation, judged without the test part.

    kinds: of VARIANTS; lrs: tried for each; seeds; length, readout, epochs, batch,
    device, model: as in `digits_by_init`; validation: training rows set apart.
    Returns one row a fit: kind, lr, seed, readout, length, loss, accuracy on the
    validation rows. Raises ValueError for names. Source: 2206.11893's protocol.
    """
    import pandas as pd

    rows, kinds = [], list(kinds)
    for seed in seeds:
        data = digits(length, seed, validation).only_train()
        for kind, lr in ((k, r) for k in kinds for r in lrs):
            row = {"kind": kind, "lr": lr, "seed": seed, "readout": readout}
            settings = {"epochs": epochs, "lr": lr, "batch": batch}
            made = _digit_run(
                row | {"length": length}, data, settings, None, device, model
            )
            rows.append(made[0])
    return pd.DataFrame(rows)


def best_rate(tuned: pandas.DataFrame) -> dict[str, float]:
    """The learning rate with the highest mean validation accuracy, by kind.

    tuned: what `tune` returns; ties go to the smaller rate. Returns {kind: lr}.
    """
    means = tuned.groupby(["kind", "lr"], sort=True)["accuracy"].mean().unstack()
    return {str(kind): float(row.idxmax()) for kind, row in means.iterrows()}
