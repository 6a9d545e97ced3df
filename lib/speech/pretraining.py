"""One training loop for all speech models, and masked prediction.

`train` reads like the algorithm: a batch, every loss with its weight, backward, clip,
AdamW. All draws of a step follow from (seed, step, name of the loss), so a killed run
goes on to the same bits, and a loss of weight 0 is skipped and leaves no trace in the
others. `Predictor` masks frames and predicts labels there, wherever they come from.
Sources: 2202.01855 (BEST-RQ), 2106.07447 (HuBERT), recipe of the collection's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from lib.kit import parallel
from lib.kit.checkpoints import finite, resume, save
from lib.kit.checks import choice, count, need
from lib.speech.conformer import Conformer, valid_frames
from lib.speech.masking import seeded, span_mask, with_embedding, with_noise

# -- the recipe ---------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """AdamW and its schedule.

    steps; lr: at the top; warmup: share of the steps with rising rate; decay: "cosine"
    to 0 after it, "linear" to 0 from `hold` on, "none"; hold: share of the steps;
    betas, weight_decay: of AdamW; clip: norm of the whole gradient, 0 for none.
    """

    steps: int = 900
    lr: float = 2e-3
    warmup: float = 0.08
    decay: str = "cosine"
    hold: float = 0.5
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    clip: float = 1.0

    def __post_init__(self) -> None:
        count("steps", self.steps)
        choice("decay", self.decay, ("cosine", "linear", "none"))
        need(self.lr > 0, f"lr is {self.lr}; give a positive learning rate.")
        for name in ("warmup", "hold"):
            share = getattr(self, name)
            need(0 <= share < 1, f"{name} is {share}; give a share of steps below 1.")

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        warm = round(self.warmup * self.steps)
        up = min(1.0, (step + 1) / warm) if warm else 1.0
        down = 1.0
        if self.decay == "cosine":
            done = max(0, step - warm) / max(1, self.steps - warm)
            down = (1 + math.cos(math.pi * done)) / 2
        elif self.decay == "linear":
            down = min(1.0, (self.steps - step) / ((1 - self.hold) * self.steps))
        return self.lr * up * down


class Loss(NamedTuple):
    """One loss: `of(batch, generator)` gives a number, `weight` one or one a step."""

    of: Callable[[Any, torch.Generator], Tensor]
    weight: float | Callable[[int], float] = 1.0

    def weight_at(self, step: int) -> float:
        """The weight in a step, counted from 0."""
        return float(self.weight(step) if callable(self.weight) else self.weight)


# -- the loop -----------------------------------------------------------------------


def train(
    model: nn.Module,
    losses: Mapping[str, Loss],
    batches: Callable[[int], Any],
    recipe: Recipe,
    *,
    groups: Mapping[str, tuple[nn.Module, float]] | None = None,
    prepare: Callable[[Any, torch.Generator], Any] | None = None,
    after: Callable[[int], None] | None = None,
    seed: int = 0,
    path: str | None = None,
    every: int = 50,
    settings: Mapping[str, Any] | None = None,
    bar: bool = False,
) -> dict[str, list[float]]:
    """Minimise the weighted sum of losses; the model is changed in place.

    losses: by name; one of weight 0 is not computed; batches: the batch of a step, from
    the step alone (`batches.Stream`); groups: of parameters, each a module and its
    factor on the learning rate, default the whole model; prepare: what the losses
    share, run once a step, its result replaces the batch; after: called with the number
    of steps done, such as an EMA update (its state must be buffers); seed: of all
    draws; path, every: the checkpoint and how often it is written; settings: what else
    makes this run this run; bar: show progress, loss and time left. Inside
    `parallel.session` each process has its own draws (and batches, where they ask for
    `parallel.part(step)`), the gradient is the mean, and a checkpoint of the first
    process serves all. Returns lists, one entry a step: "loss", "norm" of the gradient,
    and every loss, nan where skipped.
    Raises ValueError for groups, names or a foreign checkpoint, FloatingPointError for
    a loss or gradient that is not finite.
    """
    need("loss" not in losses and "norm" not in losses, "No loss can be named so.")
    count("every", every)
    optimiser = _optimiser(model, groups or {"all": (model, 1.0)}, recipe)
    history: dict[str, list[float]] = {n: [] for n in ("loss", "norm", *losses)}
    key = asdict(recipe) | {"seed": seed, "losses": list(losses)} | dict(settings or {})
    if parallel.size() > 1:  # a run of its own, which one process cannot go on with
        key["seed"] = parallel.named(seed)
    first = resume(path, model, optimiser, key, history)
    first = parallel.share(first, model, optimiser, history)
    training = model.training
    model.train()
    steps = _counted(first, recipe.steps, bar)
    for step in steps:
        batch = batches(step)
        own = parallel.part(step)  # the step itself where one process trains
        if prepare:
            with seeded(seed, own) as g:
                batch = prepare(batch, g)
        total, values = weighted(losses, batch, seed, step, own)
        for group in optimiser.param_groups:
            group["lr"] = recipe.rate(step) * group["scale"]
        optimiser.zero_grad()
        total.backward()
        parallel.average(_parameters(optimiser))
        limit = recipe.clip or math.inf
        norm = float(nn.utils.clip_grad_norm_(_parameters(optimiser), limit))
        need(
            math.isfinite(norm),
            f"The gradient's norm is {norm} at step {step}: lower lr.",
            FloatingPointError,
        )
        optimiser.step()
        if after:
            after(step + 1)
        values = parallel.mean(values, total.device)
        for name, value in (values | {"norm": norm}).items():
            history[name].append(value)
        if bar:
            steps.set_postfix(loss=f"{values['loss']:.3f}", refresh=False)
        if (step + 1) % every == 0 or step + 1 == recipe.steps:
            save(path, model, optimiser, key, history)
    model.train(training)
    return history


def weighted(
    losses: Mapping[str, Loss], batch: Any, seed: int, step: int, own: int | None = None
) -> tuple[Tensor, dict[str, float]]:
    """The sum of weight times loss, and the values: "loss" and every name.

    Each loss draws from generators of (seed, step, its name), dropout included; own: a
    number instead of the step there, where several processes share a step. One of
    weight 0 is skipped (0 times nan is nan), its value nan. Raises ValueError where no
    loss is left or none reaches a parameter, FloatingPointError for one not finite.
    """
    total, values = None, {name: math.nan for name in losses}
    for name, loss in losses.items():
        weight = loss.weight_at(step)
        if weight == 0:
            continue
        with seeded(seed, step if own is None else own, name) as g:
            value = loss.of(batch, g)
        values[name] = finite(value.item(), step)
        total = weight * value if total is None else total + weight * value
    need(total is not None, f"All losses have weight 0 at step {step}; skip the step.")
    need(
        total.requires_grad,
        f"No loss at step {step} depends on a parameter: look for .item(), .detach() "
        "or no_grad on the way.",
    )
    return total, {"loss": total.item()} | values


def _optimiser(
    model: nn.Module, groups: Mapping[str, tuple[nn.Module, float]], recipe: Recipe
) -> torch.optim.AdamW:
    """AdamW over groups that hold every trainable parameter once."""
    taken = [p for part, _ in groups.values() for p in part.parameters()]
    wanted = {id(p): n for n, p in model.named_parameters() if p.requires_grad}
    names = [wanted.get(id(p)) for p in taken if p.requires_grad]
    left = sorted(set(wanted.values()) - set(names))
    need(
        not left and None not in names and len(set(names)) == len(names),
        "The groups must hold every trainable parameter of the model once"
        + (f"; missing: {', '.join(left[:3])}." if left else "."),
    )
    parts = [
        {
            "params": [p for p in part.parameters() if p.requires_grad],
            "lr": recipe.lr * scale,
            "scale": scale,
        }
        for part, scale in groups.values()
    ]
    settings = {"betas": recipe.betas, "weight_decay": recipe.weight_decay}
    return torch.optim.AdamW(parts, lr=recipe.lr, fused=True, **settings)


def _parameters(optimiser: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimiser.param_groups for p in group["params"]]


def _counted(first: int, steps: int, bar: bool) -> Iterable[int]:
    """The steps still to do, with a progress bar if asked."""
    if not bar:
        return range(first, steps)
    from tqdm.auto import tqdm

    return tqdm(range(first, steps), initial=first, total=steps, unit="step")


def unmoved(before: Mapping[str, Tensor], model: nn.Module) -> list[str]:
    """Names of the parameters that are still what they were: before is a copy.

    before: {name: tensor} of an earlier `named_parameters()`, cloned. A loss whose
    gradient was lost on the way (`.item()`) shows here after one step.
    """
    return [n for n, p in model.named_parameters() if torch.equal(p, before[n])]


def gradient_norm(loss: Tensor, parameters: Iterable[Tensor]) -> float:
    """The norm of one loss's gradient, 0 where it reaches no parameter.

    The graph is kept, so that several losses of one step can be compared.
    """
    slopes = torch.autograd.grad(
        loss, list(parameters), retain_graph=True, allow_unused=True
    )
    return math.sqrt(sum(float(s.square().sum()) for s in slopes if s is not None))


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, decay: float) -> None:
    """Teacher parameters to decay * teacher + (1 - decay) * student, in place."""
    need(0 <= decay <= 1, f"decay is {decay}; give a number from 0 to 1.")
    for mine, other in zip(teacher.parameters(), student.parameters(), strict=True):
        mine.lerp_(other, 1 - decay)


# -- masked prediction --------------------------------------------------------------


class Masked(NamedTuple):
    """A masked forward pass.

    hidden: states of every layer, (batch, T, d) each; mask: (batch, T) bool.
    """

    hidden: list[Tensor]
    mask: Tensor

    def frames(self, layer: int = -1) -> Tensor:
        """The states of the masked frames: (masked, d)."""
        rows = self.mask.flatten().nonzero()[:, 0]
        return self.hidden[layer].flatten(0, 1).index_select(0, rows)


class CosineHead(nn.Module):
    """HuBERT's head: cos(A h, e_c) / tau.

    d: channels; V: codes; d_c: of the code embeddings; tau: temperature.
    Source: 2106.07447, eq. 3.
    """

    def __init__(self, d: int, V: int, d_c: int = 64, tau: float = 0.1) -> None:
        super().__init__()
        need(tau > 0, f"tau is {tau}; give a positive temperature.")
        self.tau, self.A = tau, nn.Linear(d, d_c)
        self.codes = nn.Parameter(torch.randn(V, d_c))

    def forward(self, h: Tensor) -> Tensor:
        """h (..., d) to logits (..., V)."""
        codes = functional.normalize(self.codes, dim=-1)
        return functional.normalize(self.A(h), dim=-1) @ codes.T / self.tau


class Predictor(nn.Module):
    """An encoder that predicts the labels of masked frames, with one head or several.

    encoder; heads: {name: number of codes}, linear, or any modules d -> V; p, span:
    of the mask (see `span_mask`); std: of the noise in masked frames; learned: a
    learned vector there instead. Raises ValueError as the mask does.
    """

    def __init__(
        self,
        encoder: Conformer,
        heads: Mapping[str, int | nn.Module],
        p: float = 0.1,
        span: int = 5,
        std: float = 0.1,
        learned: bool = False,
    ) -> None:
        super().__init__()
        self.encoder, self.p, self.span, self.std = encoder, p, span, std
        linear = {n: h for n, h in heads.items() if not isinstance(h, nn.Module)}
        made = {n: nn.Linear(encoder.d, V) for n, V in linear.items()}
        self.heads = nn.ModuleDict({n: made.get(n, h) for n, h in heads.items()})
        vector = torch.randn(encoder.features) * std if learned else None
        self.embedding = None if vector is None else nn.Parameter(vector)

    def forward(self, x: Tensor, lengths: Tensor, generator: torch.Generator) -> Masked:
        """Mask frames of x (batch, T, features), drawn on the CPU, and encode."""
        mask = span_mask(lengths, self.p, self.span, generator, x.shape[1])
        if self.embedding is None:
            x = with_noise(x, mask, generator, self.std)
        else:
            x = with_embedding(x, mask, self.embedding)
        return Masked(self.encoder(x, lengths), mask)

    def loss(self, masked: Masked, labels: Tensor, head: str) -> Tensor:
        """Mean cross-entropy over the masked frames.

        labels: (batch, T) codes, or (batch, T, V) probabilities, which may carry a
        gradient; head: a name. Raises ValueError for a shape or name.
        """
        choice("head", head, self.heads)
        return cross_entropy(self.heads[head](masked.frames()), labels[masked.mask])


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of frames; 0, still with a graph, where there are none.

    logits: (n, V); labels: (n,) codes or (n, V) probabilities, whose gradient is kept.
    Raises ValueError for another shape.
    """
    n = len(logits)
    need(
        labels.shape in ((n,), logits.shape),
        f"The logits have shape {tuple(logits.shape)} and the labels "
        f"{tuple(labels.shape)}; give one code or V probabilities a frame.",
    )
    if n == 0:
        return logits.sum()
    if labels.dim() == 1:
        return functional.cross_entropy(logits, labels)
    return -(labels * logits.log_softmax(-1)).sum(-1).mean()


def normalised(
    h: Tensor, lengths: Tensor | None, over: str = "utterance", eps: float = 1e-5
) -> Tensor:
    """States of mean 0 and variance 1: per channel over time, or per frame.

    h: (batch, T, d); lengths: (batch,), None for all T; over: "utterance", over the
    utterance's own frames, or "frame", over channels. Zero past the lengths.
    Raises ValueError for another word.
    """
    choice("over", over, ("utterance", "frame"))
    valid = h.new_ones(h.shape[:2], dtype=torch.bool)
    valid = valid if lengths is None else valid_frames(lengths, h.shape[1])
    keep = valid[..., None].to(h.dtype)
    if over == "frame":
        return functional.layer_norm(h, h.shape[-1:], eps=eps) * keep
    n = keep.sum(1, keepdim=True)
    centred = (h - (h * keep).sum(1, keepdim=True) / n) * keep
    return centred / (centred.square().sum(1, keepdim=True) / n + eps).sqrt()
