"""The trials of the comparison: a training, conflict maps along one, costs of a step.

Functions for `lib.kit.trials`. They take speech that ships, speech made for the run, or
real corpora by name, and a device: the same trial in small and at full size. Lists of
settings and what shows results stand in other files, so that another table trains
nothing again.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lib.kit.checks import choice, need
from lib.kit.launching import data_parallel
from lib.kit.results import write_json
from lib.kit.trials import plain
from lib.objective_soup.balance import Balance
from lib.objective_soup.measuring import conflict_map, evaluated, sacrebleu, summary
from lib.objective_soup.model import Sizes, Soup, load_soup, losses, save_soup
from lib.objective_soup.recipes import (
    METHODS,
    Recipe,
    Selection,
    plain_sum,
    recipe_of,
    single,
    vs,
)
from lib.objective_soup.training import Fit, train
from lib.objective_soup.world import Feed, World, halves, world_of
from lib.speech.recipes import device_of

MODEL, HEARD = "soup.npz", "heard.json"
TWO_STAGE = "two-stage"
POINTS = 60  # of a thinned history


@data_parallel
def training(
    folder: Path,
    *,
    method: str,
    seed: int,
    steps: int = 1000,
    lr: float = 5e-3,
    options: Mapping[str, Any] | None = None,
    model: Mapping[str, Any] | None = None,
    ssl: str = "best_rq",
    fit: Mapping[str, Any] | None = None,
    look: int = 25,
    device: str = "cpu",
    processes: int = 1,  # for `data_parallel`
    every: int = 100,
    **world: Any,
) -> dict[str, Any]:
    """Train a model by one method, and judge it on validation and test.

    folder: gets soup.npz and heard.json; method: a key of `METHODS`, or "two-stage":
    the same self-supervised batches first (options: "first", their lr), then the same
    supervised ones; seed: of weights, batches, masks and dropout; steps, lr; options:
    of the method; model: of `Sizes`; ssl: "best_rq" or "cpc"; fit: further fields of
    `Fit`; look: steps between looks at all gradients; device; processes: each with
    batches of its own, one model; every: steps between checkpoints; world: of
    `world_of`. Returns "test" and "validation" (`evaluated`, with "mean" over
    languages), "history" of every stage, thinned, "weights" at the end, "cpu_s" of
    training, "memory" in MiB, "parameters". Raises ValueError for settings, SpeechError
    for speech, ImportError without sacrebleu.
    """
    sacrebleu()  # say so before the training, not after it
    place, options = device_of(device), dict(options or {})
    speech = world_of(**world)
    soup = built(speech, model, ssl, seed).to(place)
    stages = staged(method, speech.objectives, lr, options)
    how = {"seed": seed, "look": look, "every": every}
    how |= {"settings": {"world": repr(sorted(world.items())), "ssl": ssl}}
    found, spent = [], 0.0
    for number, (recipe, rate) in enumerate(stages):
        path = str(folder / f"stage_{number}.pt")
        asked = Fit(steps=steps, lr=rate, **dict(fit or {}))
        history, seconds = timed(soup, speech, recipe, asked, path=path, **how)
        found.append(thinned(history, recipe))
        spent += seconds
    names = [n for n in speech.objectives if any(n in r.names for r, _ in stages)]
    result = judged(folder, soup.cpu(), speech, names)
    card = {"method": method, "options": options, "seed": seed, "steps": steps}
    card |= {"lr": lr, "mean": result["test"]["mean"]}
    save_soup(folder / MODEL, soup, card)
    for number in range(len(stages)):
        (folder / f"stage_{number}.pt").unlink(missing_ok=True)
    return result | {
        "history": found,
        "weights": dict(zip(found[-1]["names"], found[-1]["weights"][-1])),
        "cpu_s": spent,
        "memory": peak_memory(place),
        "parameters": sum(p.numel() for p in soup.encoder.parameters()),
        "utterances": {n: len(c) for n, c in speech.train.items()},
    }


def built(world: World, sizes: Mapping[str, Any] | None, ssl: str, seed: int) -> Soup:
    """The model of a trial, its frames as wide as the world's."""
    features = next(iter(world.train.values())).features.shape[1]
    given = {"features": features} | dict(sizes or {})
    for name in given:
        choice("A size of the model", name, Sizes._fields)
    return Soup(world, Sizes(**given), ssl, seed)


def staged(
    method: str, names: Sequence[str], lr: float, options: dict[str, Any]
) -> list[tuple[Recipe, float]]:
    """The recipes of a method with their learning rates, one after the other."""
    choice("method", method, (*METHODS, TWO_STAGE))
    if method != TWO_STAGE:
        return [(recipe_of(method, names, **options), lr)]
    first = options.get("first", 2e-3)
    return [(single(names, "ssl"), first), (plain_sum(names, ssl=0), lr)]


def timed(
    soup: Soup, world: World, recipe: Recipe, fit: Fit, **how: Any
) -> tuple[dict[str, list], float]:
    """Train, and the CPU seconds of all steps without the looks.

    Where a run goes on from a checkpoint its other steps are taken to cost the same.
    """
    here: list[int] = []
    began = time.process_time()
    history = train(soup, world, recipe, fit, after=here.append, **how)
    spent = time.process_time() - began
    if not here:
        return history, float("nan")
    looks = [row for row in history["looks"] if row["step"] >= here[0] - 1]
    spent -= sum(row["cpu_s"] for row in looks)
    return history, spent * fit.steps / len(here)


def judged(
    folder: Path, soup: Soup, world: World, names: Sequence[str]
) -> dict[str, Any]:
    """What a model makes of validation and test; its texts go into a file."""
    found = {}
    for part in ("validation", "test"):
        numbers = evaluated(soup, world, part, names)
        if part == "test":
            write_json(folder / HEARD, numbers["heard"])
        found[part] = numbers | {"mean": summary(numbers)}
        del found[part]["heard"]
    return found


def thinned(history: Mapping[str, list], recipe: Recipe) -> dict[str, Any]:
    """A history as means over at most POINTS windows of steps; the last as it is.

    Returns "names", "layers" chosen as shares of the window, "step" (the last of each
    window from 1), and every list; "looks" are kept.
    """
    total = len(history["loss"])
    ends = np.linspace(0, total, min(POINTS, total) + 1).round().astype(int)
    thin: dict[str, Any] = {"names": list(recipe.names), "step": ends[1:].tolist()}
    for name in ("losses", "weights", "etas", "norms", "chosen"):
        windows = np.split(np.array(history[name], float), ends[1:-1])
        thin[name] = [np.round(w.mean(0), 5).tolist() for w in windows]
    return thin | {"looks": history["looks"]}


def peak_memory(place: torch.device) -> float:
    """The most memory that was held, in MiB: of the GPU, or of this process."""
    if place.type == "cuda":
        return torch.cuda.max_memory_allocated(place) / 2**20
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


# -- conflict -------------------------------------------------------------------------


def conflict(
    folder: Path,
    *,
    seed: int,
    source: str = "",
    marks: Sequence[int] = (0, 50, 200, 400),
    method: str = "sum",
    steps: int = 400,
    lr: float = 5e-3,
    options: Mapping[str, Any] | None = None,
    model: Mapping[str, Any] | None = None,
    batches: int = 12,
    granularity: str = "block",
    device: str = "cpu",
    every: int = 50,
    **world: Any,
) -> dict[str, Any]:
    """Conflict maps at some steps of a training, or of a finished trial's model.

    folder; seed: of the training and of the maps' batches; source: key of a `training`
    trial, whose end is looked at; else marks: after how many steps; method, steps, lr,
    options, model: of the training (model: e.g. {"d": 16}); batches, granularity: of
    `conflict_map`; device; every; world: of `world_of`. Returns "maps", a list of maps
    with their "step", "test" (means over languages, of a training), "parameters",
    "cpu_s", "memory". Raises ValueError as these, and for marks beyond the steps.
    """
    place, speech = device_of(device), world_of(**world)
    how = {"batches": batches, "granularity": granularity, "seed": seed}
    began = time.process_time()
    if source:
        from lib.kit.trials import folder_of

        soup, card = load_soup(folder_of(source) / MODEL)
        maps = [{"step": card["steps"]} | conflict_map(soup.to(place), speech, **how)]
        rest: dict[str, Any] = {"source": source, "mean": card["mean"]}
    else:
        late = [mark for mark in marks if mark > steps or mark < 0]
        need(not late, f"The marks {late} lie outside a training of {steps} steps.")
        soup = built(speech, model, "best_rq", seed).to(place)
        recipe = recipe_of(method, speech.objectives, **dict(options or {}))

        def mapped(done: int) -> None:
            if done in marks and not _map(folder, done).exists():
                found = conflict_map(soup, speech, **how)
                write_json(_map(folder, done), plain({"step": done} | found))

        mapped(0)
        fit = Fit(steps=steps, lr=lr)
        kept = {"path": str(folder / "run.pt"), "every": every}
        train(soup, speech, recipe, fit, seed=seed, after=mapped, **kept)
        maps = [_read(_map(folder, mark)) for mark in sorted(set(marks))]
        rest = {"test": summary(evaluated(soup.cpu(), speech))}
    return rest | {
        "maps": maps,
        "parameters": sum(p.numel() for p in soup.encoder.parameters()),
        "cpu_s": time.process_time() - began,
        "memory": peak_memory(place),
    }


def _map(folder: Path, mark: int) -> Path:
    return folder / f"map_{mark}.json"


def _read(path: Path) -> dict[str, Any]:
    import json

    return json.loads(path.read_text("utf-8"))


# -- costs ----------------------------------------------------------------------------


def costs(
    folder: Path,
    *,
    rounds: int = 10,
    seed: int = 0,
    model: Mapping[str, Any] | None = None,
    device: str = "cpu",
    batch: int = 8,
    **world: Any,
) -> dict[str, Any]:
    """What a step costs: the plain sum, all gradients, or those of one layer.

    folder: not used; rounds: steps of each variant, taken in turns; seed; model: of
    `Sizes`; device; batch; world: of `world_of`. A step is losses and `Balance.update`,
    without the optimiser. Returns "milliseconds", {variant: CPU time, on a GPU wall
    time, of every round}, "ratio" of medians to the plain sum's, "floats" that the
    gradients take, {variant: number}. Raises ValueError for settings.
    """
    place, speech = device_of(device), world_of(**world)
    soup, names = built(speech, model, "best_rq", seed).to(place), speech.objectives
    feed = Feed(speech, batch, seed, place)
    clock = time.perf_counter if place.type == "cuda" else time.process_time
    variants = costed(soup, names, rounds + 2)
    heads, spent = soup.heads(), {name: [] for name in variants}
    for step in range(1, rounds + 2):  # a look at all layers would come at step 0
        batches = feed.at(step, names)
        for name, balance in variants.items():
            parts = halves(batches) if balance.recipe.halved else [batches]
            began = clock()
            samples = [losses(soup, b, names, seed, step) for b in parts]
            balance.update(samples, heads, step)
            if place.type == "cuda":
                torch.cuda.synchronize(place)
            spent[name].append(1000 * (clock() - began))
    spent = {name: row[1:] for name, row in spent.items()}  # the first warms up
    usual = float(np.median(spent["plain sum"]))
    sizes = {n: sum(p.numel() for p in g) for n, g in soup.layers().items()}
    M = len(names)
    floats = {
        name: 0 if b.recipe.static else M * sum(sizes[n] for n in b.look())
        for name, b in variants.items()
    }
    ratio = {name: float(np.median(row)) / usual for name, row in spent.items()}
    return {"milliseconds": spent, "ratio": ratio, "floats": floats}


def costed(soup: Soup, names: Sequence[str], steps: int) -> dict[str, Balance]:
    """The variants of `costs` by name: MoDo over all layers, and over each alone."""
    layers = soup.layers()
    recipes = {
        "plain sum": plain_sum(names),
        "all layers": vs(names),
        "all layers, halves": vs(names, sample="halves"),
        "MGDA": recipe_of("balanced", names, by="MGDA"),
    }
    found = {name: Balance(recipe, layers, steps) for name, recipe in recipes.items()}
    never = Selection(every=steps)
    for place, name in enumerate(layers):
        alone = vs(names, selection=never)
        balance = found[f"only {name}"] = Balance(alone, layers, steps)
        balance.chosen[:] = torch.arange(len(layers)) == place
    return found
