"""Small trainings of the speech rooms, run alone and by two processes.

`python parallel_rooms.py OUT MODE` runs all of them in two processes; each leaves
OUT.<rank>. With MODE "same" both draw what one alone would, so that they must do what
one alone does; with "own" each has draws of its own.
"""

from __future__ import annotations

import sys

import torch

from lib.kit import parallel
from lib.kit.launching import together

CONFORMER = {"d": 16, "blocks": 2, "heads": 2, "kernel": 3}


def speech_ssl(name: str) -> tuple:
    """32: labels of every kind, some of which are made anew on the way."""
    from lib.speech.synthesis import shipped
    from lib.speech_ssl.arms import make
    from lib.speech_ssl.task import Task, pretrain

    pool = shipped("en").select(split="unlabelled").take(range(40))
    task = Task(pool, 4, 1, V=16, sizes=CONFORMER, frames=300)
    arm = make(task, name, {"d_c": 8} if name == "birq_fitted" else {})
    return arm.model, pretrain(task, arm)["loss"]


def bl_just(name: str) -> tuple:
    """33: a stage with exploration, a joint phase and its ramp."""
    from lib.bl_just.model import Data, Joint, quantizer, run_stage
    from lib.bl_just.schedules import Budget
    from lib.bl_just.study import stages_of
    from lib.speech.synthesis import shipped

    corpus = shipped("en")
    pool = corpus.select(split="unlabelled").take(range(20))
    data = Data(pool, quantizer(name, pool, 8), corpus.select(split="labelled"))
    symbols = len(pool.vocabulary) - 1
    model = Joint(symbols, 8, 1, 1, CONFORMER)
    stages = stages_of("bl_just", Budget(4, 2), explore=2, shared=2)
    found = [run_stage(model, stage, data, seed=1)["loss"] for stage in stages]
    return model, [value for row in found for value in row]


def own_recordings(name: str) -> tuple:
    """33's command: all stages on recordings with texts and a pool."""
    from lib.bl_just.own import jointly
    from lib.speech.recipes import Run
    from lib.speech.synthesis import shipped

    corpus = shipped("en")
    some = corpus.select(split="labelled").take(range(8))
    pool = corpus.select(split="unlabelled").take(range(10))
    sizes = {"d": 16, "blocks": 1}
    made = jointly(some, [pool], Run(6), explore=3, V=8, labels=name, sizes=sizes)
    return made.model, made.history["first, loss"] + made.history["final, loss"]


def local_constraints(name: str) -> tuple:
    """34: own steps of the sources inside a step."""
    from lib.local_constraints.constraint import Arm
    from lib.local_constraints.learning import learn, predictor
    from lib.local_constraints.sources import labels_of, world

    parts = world("languages", utterances=0)
    kind, K = name.split()
    arm = Arm(kind, int(K), 0.01)
    model = predictor(list(parts.sources), d=16, blocks=1)
    labels = labels_of("best_rq", parts.sources, 1)
    budget = 2 * len(parts.sources) * arm.gradients
    learner, history = learn(model, parts.sources, labels, arm, budget, frames=200)
    return learner.objective, history["loss"]


def objective_soup(name: str) -> tuple:
    """42: gradients of several objectives, compared before they are added."""
    from lib.objective_soup import (
        Fit,
        Selection,
        Sizes,
        Soup,
        plain_sum,
        selected,
        shipped_world,
        train,
        uncertainty,
        vm,
    )

    world = shipped_world(("en", "de"))
    top = Selection(every=2, least=1, unbiased=True)
    recipes = {
        "sum": plain_sum,
        "lagged": lambda names: vm(names, gamma=0.1),
        "halves": lambda names: vm(names, gamma=0.1, sample="halves"),
        "uncertainty": uncertainty,
        "selected": lambda names: selected(names, top, gamma=0.1),
    }
    model = Soup(world, Sizes(d=8, blocks=2, heads=2))
    fit = Fit(steps=3, batch=2)
    history = train(model, world, recipes[name](world.objectives), fit, seed=3, look=2)
    rows = history["losses"] + history["weights"] + history["norms"]
    return model, [value for row in rows for value in row]


ROOMS = {
    "speech_ssl": (speech_ssl, ("kmeans", "relabel", "birq_fitted", "dinosr")),
    "bl_just": (bl_just, ("best_rq", "kmeans")),
    "own_recordings": (own_recordings, ("best_rq",)),
    "local_constraints": (
        local_constraints,
        ("mixing 0", "first_order 2", "reptile 2"),
    ),
    "objective_soup": (
        objective_soup,
        ("sum", "lagged", "halves", "uncertainty", "selected"),
    ),
}
CASES = [(room, name) for room, (_, names) in ROOMS.items() for name in names]


def trained(room: str, name: str) -> dict:
    """The weights and the history of one training."""
    torch.manual_seed(0)
    model, history = ROOMS[room][0](name)
    return {"weights": model.state_dict(), "history": history}


def inner() -> dict[str, list[float]]:
    """Own steps on (phi - c)^2 / 2 with a c of each process, and the gradient behind.

    Alone, c is the mean of theirs.
    """
    from lib.local_constraints.constraint import adapted, reptile

    theta = {"p": torch.tensor([1.0, 3.0], requires_grad=True)}
    c = parallel.rank() if parallel.size() > 1 else 0.5
    losses = [lambda phi, k=k: ((phi["p"] - k - c) ** 2).sum() / 2 for k in range(3)]
    first, mean = adapted(losses, theta, 0.1), reptile(losses, theta, 0.1)
    slopes = [torch.autograd.grad(x.loss, theta["p"])[0] for x in (first, mean)]
    phi = [x.phi["p"].detach() for x in (first, mean)]
    names = ("first order", "Reptile", "phi", "phi of Reptile")
    return {n: x.tolist() for n, x in zip(names, parallel.same(slopes + phi))}


def work(out: str, mode: str) -> None:
    """What each process does."""
    torch.set_num_threads(1)
    if mode == "same":
        parallel.part = lambda step: step
    found = {f"{room} {name}": trained(room, name) for room, name in CASES}
    found["inner"] = inner()
    rows = torch.arange(2.0 + parallel.rank())[:, None] + 10 * parallel.rank()
    found["rows"] = parallel.gathered(rows)[:, 0].tolist()
    torch.save(found, f"{out}.{parallel.rank()}")


if __name__ == "__main__":
    together(work, *sys.argv[1:], processes=2)
