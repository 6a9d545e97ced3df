"""The trials of the comparison: one arm, one budget, one seed each.

`exploring` is the first stage without CTC and leaves checkpoints on its way, from which
other trials go on; `training` is a whole arm. Both can be killed and continued. Fresh
processes import this file: plots, tables and lists of trials stand elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from time import process_time
from typing import Any

import torch

from lib.bl_just.model import (
    LOSSES,
    Data,
    Joint,
    adopt,
    evaluated,
    levels,
    pull,
    quantizer,
    run_stage,
    spent,
)
from lib.bl_just.parts import rates, speech
from lib.bl_just.pseudo import confident, hear, relabelled
from lib.bl_just.records import Clock, Pulls, curves
from lib.bl_just.schedules import (
    LAST,
    Budget,
    Stage,
    bl_just,
    fixed_sum,
    penalised,
    planned,
    pretrained,
    self_training,
    supervised,
)
from lib.kit import parallel
from lib.kit.checks import choice, need
from lib.kit.launching import data_parallel
from lib.kit.trials import folder_of
from lib.speech.corpus import Corpus
from lib.speech.recognition import FINE_TUNE, SCRATCH, Tuning, error_rate

ARMS = ("supervised", "pt_ft", "self_training", "fixed_sum", "bl_just")
OWN = {  # rates of the final stage, which `lr`, `encoder` and `frozen` replace
    "supervised": SCRATCH,
    "pt_ft": FINE_TUNE,
    "self_training": FINE_TUNE,
    "fixed_sum": LAST,  # has no final stage
    "bl_just": LAST,
}


# -- the arms by name ---------------------------------------------------------------


def stages_of(
    arm: str,
    budget: Budget,
    *,
    lr: float | None = None,
    encoder: float | None = None,
    frozen: float | None = None,
    **options: Any,
) -> list[Stage]:
    """The stages of an arm.

    arm: one of ARMS; budget: its SSL part is not used by "supervised"; lr, encoder,
    frozen: of the final stage where not the arm's own (of self-training: the teacher's;
    the student has a third of the lr); options: of the arm's function in `schedules`.
    Raises ValueError for a name or a budget, TypeError for an option.
    """
    choice("arm", arm, ARMS)
    how = _changed(OWN[arm], lr, encoder, frozen)
    if arm == "supervised":
        return supervised(budget, how, **options)
    if arm == "pt_ft":
        return pretrained(budget, how, **options)
    if arm == "bl_just":
        return bl_just(budget, how=how, **options)
    if arm == "self_training":
        third = None if lr is None else lr / 3
        student = _changed(LAST, third, encoder, None)
        return self_training(budget, how=how, student=student, **options)
    need(
        lr is encoder is frozen is None,
        "The fixed sum has no final stage; leave lr, encoder and frozen out.",
    )
    return fixed_sum(budget, **options)


def _changed(
    how: Tuning, lr: float | None, encoder: float | None, frozen: float | None
) -> Tuning:
    """A tuning with those of its rates replaced that are given."""
    given = {"encoder": encoder, "frozen": frozen}
    if lr is not None:
        given["recipe"] = replace(how.recipe, lr=lr)
    return replace(how, **{n: v for n, v in given.items() if v is not None})


# -- the trials ---------------------------------------------------------------------


@data_parallel
def exploring(
    folder: Path,
    *,
    seed: int,
    steps: int = 600,
    marks: Sequence[int] = (300, 450),
    labels: str = "best_rq",
    V: int = 64,
    size: Mapping[str, Any] | None = None,
    every: int = 50,
    device: str = "cpu",
    processes: int = 1,  # for `data_parallel`
    **where: Any,
) -> dict[str, Any]:
    """The lower level alone, by the first stage's schedule; PT is all of it.

    folder; seed; steps: of the schedule, the budget's SSL gradients; marks: multiples
    of `every` after which a checkpoint is kept beside that of the end; labels: of the
    lower level; V: codes; size: of the encoder; every: of checkpoints; device;
    processes: each with batches of its own, one model; where: of `speech`. Leaves
    at_<steps>.pt. Returns curves, the loss on the test set, CPU seconds. Raises
    ValueError for a mark.
    """
    odd = [mark for mark in marks if mark % every or not 0 < mark < steps]
    need(not odd, f"The marks {odd} are no multiples of {every} below {steps}.")
    parts, data, model, settings = _begin(seed, 0, labels, V, size, device, where)
    stage = penalised(steps, steps, 0, 1.0)
    path, clock = folder / "first.pt", Clock(folder)

    def look(done: int) -> None:
        clock.tick()
        if done - 1 in marks:  # the last checkpoint is of that step
            _copy(path, folder / f"at_{done - 1}.pt")

    how = {"path": str(path), "every": every, "settings": settings}
    history = run_stage(model, stage, data, seed=seed, look=look, **how)
    clock.stop("first", steps)
    _copy(path, folder / f"at_{steps}.pt")
    path.unlink()
    return {
        "curves": [curves(stage, history)],
        "end": levels(model, data, parts.test),
        "seconds": clock.seconds,
    }


@data_parallel
def training(
    folder: Path,
    *,
    arm: str,
    seed: int,
    n: int,
    subset: int = 0,
    tune: int = 0,
    N_ssl: int = 600,
    N_ctc: int = 300,
    source: str | None = None,
    labels: str = "best_rq",
    V: int = 64,
    size: Mapping[str, Any] | None = None,
    every: int = 50,
    device: str = "cpu",
    processes: int = 1,  # for `data_parallel`
    keep: float = 0.5,
    options: Mapping[str, Any] | None = None,
    **where: Any,
) -> dict[str, Any]:
    """One arm from its first step to its error rates.

    folder; arm: one of ARMS; seed: of theta, eta, the quantizer, the pool's batches and
    the first stage's draws; n, subset: labelled utterances; tune: seed of phi, the
    labelled batches and the later stages' draws; N_ssl, N_ctc: the budget; source: key
    of an `exploring` of this seed, whose steps are not run again; labels, V, size,
    every, device, processes: see there; keep: share of the pool that self-training
    keeps; options: of `stages_of`; where: of `speech`. Returns error rates, counted
    gradients, curves, `pull` at ten steps, both losses at the end, CPU seconds; leaves
    recogniser.pt (float16). Raises ValueError for settings that do not fit,
    AssertionError where other gradients were counted than planned.
    """
    budget = Budget(0 if arm == "supervised" else N_ssl, N_ctc)
    stages = stages_of(arm, budget, **dict(options or {}))
    parts, data, model, settings = _begin(seed, tune, labels, V, size, device, where)
    data.transcribed = parts.labelled.labelled(n, subset)
    own = {"arm": arm, "n": n, "subset": subset, "tune": tune}
    shared = 0
    if source is not None:
        shared = _adopt(
            *(source, folder, model, stages[0]),
            settings | {"seed": parallel.named(seed)},
            own,
        )
    run = _Run(
        folder, model, data, stages, {"every": every, "settings": settings | own}
    )
    for stage in stages:
        if stage.pseudo:
            data.pseudo, run.about = _labelled_pool(model, parts.pool, keep, device)
            run.clock.lap("labelling")
        run.through(stage, seed if stage.name == "first" else tune, shared)
    result = {
        **rates(model.recogniser, parts, device),
        **run.result(budget),
        "shared": shared,
        "end": levels(model, data, parts.test),
    }
    _keep(model, folder, stages)
    return result


def _begin(seed, tune, labels, V, size, device, where):
    """Speech, data and model of a trial, and what marks its checkpoints."""
    parts = speech(**where)
    label = quantizer(labels, parts.pool, V, seed, device)
    data = Data(parts.pool, label, seed=seed, tune=tune, device=device)
    symbols = len(parts.pool.vocabulary) - 1
    model = Joint(symbols, V, seed, tune, size).to(device)
    settings = {"labels": labels, "V": V, "size": dict(size or {}), "where": where}
    return parts, data, model, settings


def _adopt(source, folder, model, stage, settings, own) -> int:
    """Begin where an `exploring` stood when CTC joins; returns the steps not run."""
    until = stage.recipe.turn if stage.name == "first" else 0
    need(until > 0, "This arm explores nothing; leave its source out.")
    place = folder_of(source) / f"at_{until}.pt"
    need(
        place.exists(),
        f"The source has no checkpoint after {until} steps; add it to its marks.",
    )
    adopt(place, folder / "first.pt", model, stage, settings, own)
    return until


def _labelled_pool(
    model: Joint, pool: Corpus, keep: float, device: str
) -> tuple[Corpus, dict[str, float]]:
    """The surest part of the pool with what the model hears there, and how good it is.

    The true transcripts serve the report alone.
    """
    found = hear(model.recogniser, pool, device=device)
    indices = confident(found.confidence, keep)
    truth = [utterance.target.tolist() for utterance in pool]
    kept = [[side[i] for i in indices] for side in (truth, found.targets)]
    about = {
        "kept": len(indices),
        "of": len(pool),
        "per": error_rate(*kept).rate,
        "per_pool": error_rate(truth, found.targets).rate,
    }
    return relabelled(pool, indices, found.targets), about


def _counted(histories, stages, budget: Budget) -> dict[str, int]:
    """The gradients that were evaluated: as planned, and as the budget has it.

    Gamma 0 leaves SSL gradients of the joint phase unspent; nothing else may.
    """
    counted, wanted = spent(histories), planned(stages)
    idle = any(
        not s and c for stage in stages[:1] for s, c in zip(stage.ssl, stage.ctc)
    )
    need(
        counted == wanted
        and counted.ctc == budget.ctc
        and (counted.ssl == budget.ssl or (idle and counted.ssl < budget.ssl)),
        f"{counted} were evaluated, {wanted} planned, and the budget is {budget}.",
        AssertionError,
    )
    return counted._asdict()


class _Run:
    """The stages of an arm one after the other, and what is recorded of them."""

    def __init__(self, folder, model, data, stages, options) -> None:
        self.folder, self.model, self.data = folder, model, data
        self.stages, self.options, self.about = stages, options, None
        self.clock, self.pulls = Clock(folder), Pulls(folder, stages)
        self.histories: list[dict[str, list[float]]] = []
        self.used = dict.fromkeys(LOSSES, 0)  # mini-batches of each stream

    def through(self, stage: Stage, seed: int, shared: int) -> None:
        """One stage; of the first one `shared` steps were run by another trial."""
        shared = shared if stage.name == "first" else 0
        how = {"seed": seed, "used": self.used, **self.options}
        how |= {"path": str(self.folder / f"{stage.name}.pt")}
        how |= {"look": self._looker(stage, seed)}
        history = run_stage(self.model, stage, self.data, **how)
        self.clock.stop(stage.name, stage.steps - shared)
        self.histories.append(history)
        for name, number in evaluated(history).items():
            self.used = self.used | {name: self.used[name] + number}

    def _looker(self, stage: Stage, seed: int) -> Callable[[int], None]:
        """What is called after a step: it counts, and at times compares gradients."""
        used = self.used

        def look(done: int) -> None:
            self.clock.tick()
            if self.pulls.wanted(stage, done):
                begun = process_time()
                row = pull(self.model, stage, self.data, done, seed, used=used)
                self.pulls.enter(stage, done, row)
                self.clock.without(process_time() - begun)

        return look

    def result(self, budget: Budget) -> dict[str, Any]:
        """Counts, curves, pulls, pseudo-labels and seconds."""
        counted = _counted(self.histories, self.stages, budget)
        return {
            "counted": counted | {"pseudo": self.used["pseudo"]},
            "curves": [curves(s, h) for s, h in zip(self.stages, self.histories)],
            "pulls": self.pulls.rows(),
            "pseudo": self.about,
            "seconds": self.clock.seconds,
        }


def _keep(model: Joint, folder: Path, stages: Sequence[Stage]) -> None:
    """Leave the recogniser in half precision, and no checkpoint."""
    halves = {n: p.half().cpu() for n, p in model.recogniser.state_dict().items()}
    torch.save(halves, folder / "recogniser.pt")
    for stage in stages:
        (folder / f"{stage.name}.pt").unlink(missing_ok=True)


def _copy(path: Path, other: Path) -> None:
    """Copy a file, so that a reader sees all of it or nothing."""
    part = other.with_suffix(".part")
    part.write_bytes(path.read_bytes())
    part.replace(other)
