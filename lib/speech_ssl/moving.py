"""Labels that move with the model, in rounds or in every step, without a gradient.

`relabel`: once, half way (HuBERT's second round, BEATs); `dinosr`: the codes of an
average of the model's own past; `data2vec`: that average itself; `wav2vec`: codes
that are learned together with telling the right one from others (here the quantizer,
not the label of BiRQ, has the gradient).
Sources: 2106.07447, 2305.10005, 2212.07525, 2006.11477.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from lib.codebooks import EMACodebook, ProductQuantizer, diversity_loss
from lib.kit import parallel
from lib.kit.checks import choice, count, need
from lib.speech.batches import Batch
from lib.speech.conformer import Conformer, without_dropout
from lib.speech.masking import seeded
from lib.speech.pretraining import Loss, cross_entropy, follow, normalised
from lib.speech.quality import frames
from lib.speech_ssl.fixed import anchored, clusters
from lib.speech_ssl.task import SAMPLE, Arm, Step, Table, Task, pool_states, states

# -- in rounds ----------------------------------------------------------------------


def relabel(task: Task, layer: int = 2, first: str = "kmeans", at: float = 0.5) -> Arm:
    """Fixed labels, then k-means of the model's own layer, with a new head.

    layer: whose states are clustered; first: labels of the first round, "kmeans" of
    the input (HuBERT) or "best_rq" (BEATs); at: share of the steps after which the
    labels change. One schedule of the rate runs over both rounds and the encoder goes
    on from where it is. Raises ValueError for a word, layer or share.
    """
    choice("first", first, ("kmeans", "best_rq"))
    need(0 < at < 1, f"at is {at}; give a share of the steps.")
    model = task.predictor({"anchor": task.V, "own": task.V})
    blocks = len(model.encoder.blocks)
    need(0 <= layer <= blocks, f"layer is {layer}; the encoder has {blocks} layers.")
    if first == "kmeans":
        quantizer = clusters(task, task.inputs(), "input")
    else:
        quantizer = task.projection("anchor", task.pool.features.shape[1])
    old = anchored(task, model, "anchor", quantizer)
    new = model.own_labels = Table(task.pool, None, task.device)
    turn = max(1, round(at * task.steps))

    def after(done: int) -> None:
        if done == turn:
            some = pool_states(model.encoder, task.some(SAMPLE), layer)
            found = clusters(task, some, "own")
            new.fill(lambda batch: found(states(model.encoder, batch, layer)))
            parallel.lead([new.values])

    def loss(table: Table, head: str) -> Callable:
        return lambda step, g: model.loss(step.masked, table(step.batch), head)

    losses = {
        "anchor": Loss(loss(old, "anchor"), lambda step: float(step < turn)),
        "own": Loss(loss(new, "own"), lambda step: float(step >= turn)),
    }
    return Arm(model, losses, new, after)


# -- an average of the past ---------------------------------------------------------


def teacher_decay(done: int, steps: int, decay: tuple[float, float], rise: float):
    """The decay of the teacher: linear between two numbers in the first steps."""
    low, high = decay
    return low + (high - low) * min(1.0, done / max(1, rise * steps))


def _teach(
    task: Task, model, top: int, decay: tuple[float, float], rise: float
) -> Callable[[int], None]:
    """Give the model a teacher; returns what moves it after every step."""
    blocks = len(model.encoder.blocks)
    need(1 <= top <= blocks, f"top is {top}; the encoder has {blocks} layers.")
    need(
        len(decay) == 2 and all(0 <= d <= 1 for d in decay) and 0 <= rise <= 1,
        f"decay is {list(decay)} and rise {rise}; give two decays and a share of the "
        "steps, each from 0 to 1.",
    )
    model.teacher = copy.deepcopy(model.encoder).requires_grad_(False)

    def after(done: int) -> None:
        now = teacher_decay(done, task.steps, decay, rise)
        follow(model.teacher, model.encoder, now)

    return after


@torch.no_grad()
def teacher_layers(teacher: Conformer, batch: Batch, top: int) -> list[Tensor]:
    """The top layers of the unmasked input, each channel normalised over time.

    Returns `top` tensors (batch, T, d), the lowest first.
    """
    with without_dropout(teacher):
        hidden = teacher(batch.features, batch.lengths)
    return [normalised(h, batch.lengths) for h in hidden[-top:]]


def dinosr(
    task: Task,
    top: int = 2,
    decay: tuple[float, float] = (0.99, 0.999),
    rise: float = 0.3,
    codebook: float = 0.9,
    start: str = "data",
) -> Arm:
    """DinoSR: the nearest codes of an averaged teacher's top layers, a head each.

    top: layers; decay, rise: of the teacher, see `teacher_decay`; codebook: decay of
    the codes, which follow their members in every step; start: first codes are "data",
    states of the first teacher, or "noise". Raises ValueError for these.
    """
    choice("start", start, ("data", "noise"))
    names = [f"top{n}" for n in range(top, 0, -1)]  # top1 is the last layer
    model = task.predictor({name: task.V for name in names})
    after = _teach(task, model, top, decay, rise)
    d = model.encoder.d
    model.books = nn.ModuleDict(
        {n: EMACodebook(d, task.V, codebook, task.number("book", n)) for n in names}
    ).to(task.device)
    if start == "data":
        _first_codes(task, model, names)

    def loss(step: Step, g: torch.Generator) -> Tensor:
        layers = teacher_layers(model.teacher, step.batch, top)
        total = torch.zeros((), device=task.device)
        for name, z in zip(names, layers):
            book, labels = model.books[name], model.books[name](z)
            valid = (frames(part, step.batch.lengths) for part in (z, labels))
            book.update(*map(parallel.gathered, valid))  # the codes stay the same
            total = total + model.loss(step.masked, labels, name) / top
        return total

    def labels(batch: Batch) -> Tensor:
        return model.books[names[-1]](teacher_layers(model.teacher, batch, 1)[0])

    return Arm(model, {"teacher": Loss(loss)}, labels, after)


def _first_codes(task: Task, model, names: list[str]) -> None:
    """Codes that are random states of the first teacher."""
    batch, _ = task.batch(0)
    layers = teacher_layers(model.teacher, batch, len(names))
    for name, z in zip(names, layers):
        z = frames(z, batch.lengths)
        need(
            len(z) >= task.V,
            f"The first batch has {len(z)} frames for {task.V} codes; give larger "
            "batches or fewer codes.",
        )
        g = torch.Generator().manual_seed(task.number("first codes", name))
        model.books[name].sums.copy_(z[torch.randperm(len(z), generator=g)[: task.V]])


def data2vec(
    task: Task,
    top: int = 2,
    decay: tuple[float, float] = (0.99, 0.999),
    rise: float = 0.3,
) -> Arm:
    """data2vec: regress the mean of an averaged teacher's normalised top layers.

    Arguments as of `dinosr`. There are no codes, so the arm has no labels.
    """
    model = task.predictor({"regression": None})
    after = _teach(task, model, top, decay, rise)

    def loss(step: Step, g: torch.Generator) -> Tensor:
        z = torch.stack(teacher_layers(model.teacher, step.batch, top)).mean(0)
        said = model.heads["regression"](step.masked.frames())
        return functional.mse_loss(said, z[step.masked.mask])

    return Arm(model, {"teacher": Loss(loss)}, None, after)


# -- telling one from others --------------------------------------------------------


def wav2vec(
    task: Task,
    G: int = 2,
    entries: int = 32,
    d_q: int = 64,
    others: int = 20,
    tau: float = 0.1,
    gumbel: tuple[float, float] = (2.0, 0.5),
    diversity: float = 0.1,
) -> Arm:
    """wav2vec 2.0: which of these codes stands behind the mask?

    G, entries, d_q: of the product quantizer on the unmasked projected input; others:
    distractors, of masked frames of the same utterance; tau: of the cosines; gumbel:
    temperature of the selection, falling geometrically to the second number half way;
    diversity: weight of that loss. The feature penalty is left out: our projection
    ends in LayerNorm. Raises ValueError for sizes.
    """
    count("others", others)
    model = task.predictor({"prediction": d_q})
    model.quantizer = _product(task, model.encoder.d, G, entries, d_q)

    def masked_inputs(step: Step) -> Tensor:
        return model.encoder.input(step.batch.features[step.masked.mask])

    def contrast(step: Step, g: torch.Generator) -> Tensor:
        done = min(1.0, step.number / max(1, task.steps / 2))
        now = gumbel[0] * (gumbel[1] / gumbel[0]) ** done
        product = model.quantizer(masked_inputs(step), now, g)
        rows, some = distractors(step.masked.mask, others, g)
        said = model.heads["prediction"](step.masked.frames())
        return contrastive(said, product.q, product.codes, rows, some, tau)

    def spread(step: Step, g: torch.Generator) -> Tensor:
        return diversity_loss(model.quantizer(masked_inputs(step), noise=False).p)

    @torch.no_grad()
    def labels(batch: Batch) -> Tensor:
        product = model.quantizer(model.encoder.input(batch.features), noise=False)
        return sum(product.codes[..., i] * entries**i for i in range(G))

    losses = {"contrast": Loss(contrast), "diversity": Loss(spread, diversity)}
    return Arm(model, losses, labels)


def _product(task: Task, d: int, G: int, entries: int, d_q: int) -> ProductQuantizer:
    """A product quantizer whose scores are large at first, as in the public code: with
    small ones the Gumbel noise would choose."""
    with seeded(task.seed, "product"):
        quantizer = ProductQuantizer(d, G, entries, d_q)
        nn.init.normal_(quantizer.score.weight)
        nn.init.zeros_(quantizer.score.bias)
    return quantizer.to(task.device)


def distractors(
    mask: Tensor, K: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """For every masked frame, K others of the masked frames of its utterance.

    mask: (batch, T) bool; generator: on the CPU. Returns rows (n, K) into the list of
    the n masked frames, drawn with replacement, never the frame itself; and (n,) bool,
    False where an utterance has a single masked frame and the rows mean nothing.
    """
    per = mask.sum(1).cpu()
    n = torch.repeat_interleave(per, per)  # of the frame's utterance
    first = torch.repeat_interleave(per.cumsum(0) - per, per)
    own = torch.arange(len(n)) - first
    u = torch.rand(len(n), K, generator=generator)
    drawn = (u * (n - 1)[:, None]).long()
    drawn = drawn + (drawn >= own[:, None])
    rows = (first[:, None] + drawn).clamp(max=max(len(n) - 1, 0))
    return rows.to(mask.device), (n > 1).to(mask.device)


def contrastive(
    said: Tensor, q: Tensor, codes: Tensor, rows: Tensor, some: Tensor, tau: float
) -> Tensor:
    """-log of the share of the right one among exp(cos / tau), mean over frames.

    said, q: (n, c) predictions and targets; codes: (n, G) of the targets; rows (n, K),
    some (n,): of `distractors`. A distractor with the target's own codes does not
    count. Source: 2006.11477, equation 3 and its code.
    """
    said, q = functional.normalize(said, dim=-1), functional.normalize(q, dim=-1)
    right = (said * q).sum(-1, keepdim=True)
    wrong = torch.einsum("nc,nkc->nk", said, q[rows])
    same = (codes[rows] == codes[:, None]).all(-1)
    wrong = wrong.masked_fill(same, -torch.inf)
    logits = torch.cat([right, wrong], 1)[some] / tau
    return cross_entropy(logits, torch.zeros_like(logits[:, 0], dtype=torch.long))
