"""Training that leaves early exits usable, and drafts that imitate a target.

One loop. A target learns the next token with layers left out at random and with extra
losses at early exits, so that the first layers alone can draft; a draft learns the
target's law in place of the data. Matrices are stepped by Muon, the embedding and norms
by AdamW. A step draws from (seed, step) only, so a run that was killed and continued
ends with the same bits on the same machine.
Sources: 2404.16710 (LayerSkip, sections 4.1 and 4.2); Muon (Jordan et al. 2024);
specification, section 3.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from lib.kit.checkpoints import finite, mixed, resume, save
from lib.kit.checks import choice, count, need
from lib.language.transformer import Transformer

OPTIMISERS = ("muon", "adamw")
BETAS = (0.9, 0.95)
PLACES, DROPS, EXITS = range(3)  # what a step draws


@dataclass(frozen=True)
class Recipe:
    """How a model is trained; the defaults are those of the specification.

    steps; batch: windows a step; length: tokens of a window; lr; warmup: steps; floor:
    share of lr that the cosine ends at; clip: norm of the gradient; weight_decay;
    drop: probability of leaving the last layer out; exits: early exits with a loss at
    a step, 0 for none; exit_weight: of the loss at exit i (from 1) times i / layers;
    optimiser: "muon" or "adamw"; bf16: autocast to bfloat16, quick where the processor
    has it; seed. Raises ValueError.
    """

    steps: int = 4000
    batch: int = 8
    length: int = 192
    lr: float = 4e-3
    warmup: int = 40
    floor: float = 0.03
    clip: float = 1.0
    weight_decay: float = 0.0
    drop: float = 0.1
    exits: int = 2
    exit_weight: float = 0.3
    optimiser: str = "muon"
    bf16: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in dict(steps=1, batch=1, length=1, warmup=0, exits=0).items():
            count(name, getattr(self, name), least)
        choice("optimiser", self.optimiser, OPTIMISERS)
        need(self.lr > 0, f"lr is {self.lr}; give a positive rate.")
        need(self.clip > 0, f"clip is {self.clip}; give a positive norm.")
        need(0 <= self.drop < 1, f"drop is {self.drop}; give a probability below 1.")
        need(0 <= self.floor <= 1, f"floor is {self.floor}; give a share of lr.")


# -- the loop -------------------------------------------------------------------------


def train(
    model: Transformer,
    text: Tensor,
    recipe: Recipe,
    *,
    teacher: Transformer | None = None,
    held_out: Tensor | None = None,
    checkpoint: str | Path | None = None,
    every: int = 50,
    judge: int = 500,
    on_step: Callable[[int, int, float], None] | None = None,
) -> dict[str, list]:
    """Train a model in place; continue from a checkpoint if there is one.

    model: on its device; text: (tokens,) to learn from; recipe; teacher: whose law is
    learnt in place of the text's tokens; held_out: (tokens,) to measure on, every
    `judge` steps and at the end; checkpoint: a file written every `every` steps and at
    the end; on_step: called with the step, the number of steps and the loss.
    Returns {"loss": one a step, "cpu": processor seconds so far, "held_out": [step,
    losses by exit]}. Raises ValueError for settings or another run's checkpoint,
    FloatingPointError when the loss is not finite. Source: specification, section 3.
    """
    count("every", every)
    count("judge", judge)
    _fit(model, text, recipe, teacher)
    optimiser = Both(model, recipe)
    history: dict[str, list] = {"loss": [], "cpu": [], "held_out": []}
    settings = asdict(recipe) | model.about() | {"distilled": teacher is not None}
    begin = resume(checkpoint, model, optimiser, settings, history)
    spent = (history["cpu"] or [0.0])[-1] - time.process_time()
    model.train()
    for step in range(begin, recipe.steps):
        optimiser.rate(recipe.lr * schedule(step, recipe))
        tokens = windows(text, recipe, step).to(model.embedding.weight.device)
        optimiser.zero_grad()
        loss = step_loss(model, tokens, recipe, step, teacher)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimiser.step()
        history["loss"].append(finite(loss.item(), step))
        history["cpu"].append(time.process_time() + spent)
        last = step + 1 == recipe.steps
        if held_out is not None and (last or (step + 1) % judge == 0):
            length = min(recipe.length, len(held_out) - 1)
            history["held_out"].append([step + 1, losses(model, held_out, length)])
        if on_step is not None:
            on_step(step + 1, recipe.steps, loss.item())
        if last or (step + 1) % every == 0:
            save(checkpoint, model, optimiser, settings, history)
    return history


def _fit(model: Transformer, text: Tensor, recipe: Recipe, teacher) -> None:
    need(
        len(text) > recipe.length,
        f"The text has {len(text)} tokens; a window takes {recipe.length + 1}.",
    )
    vocab, context = model.sizes.vocab, model.sizes.max_len
    need(
        recipe.length <= context,
        f"Windows of {recipe.length} tokens exceed the context of {context}.",
    )
    need(int(text.max()) < vocab, f"The text has token {int(text.max())} of {vocab}.")
    other = vocab if teacher is None else teacher.sizes.vocab
    need(
        other == vocab,
        f"The teacher knows {other} tokens and the draft {vocab}; they need the same "
        "tokenizer.",
    )


def windows(text: Tensor, recipe: Recipe, step: int) -> Tensor:
    """The windows of a step, (batch, length + 1), at places of (seed, step)."""
    generator = torch.Generator().manual_seed(mixed(recipe.seed, step, PLACES))
    starts = torch.randint(
        0, len(text) - recipe.length, (recipe.batch, 1), generator=generator
    )
    return text[starts + torch.arange(recipe.length + 1)]


def schedule(step: int, recipe: Recipe) -> float:
    """The share of lr at a step from 0: linear warm-up, then cosine to `floor`."""
    if step < recipe.warmup:
        return (step + 1) / recipe.warmup
    done = (step - recipe.warmup) / max(recipe.steps - recipe.warmup, 1)
    return recipe.floor + (1 - recipe.floor) * (1 + math.cos(math.pi * done)) / 2


# -- losses ---------------------------------------------------------------------------


def step_loss(
    model: Transformer,
    tokens: Tensor,
    recipe: Recipe,
    step: int,
    teacher: Transformer | None = None,
) -> Tensor:
    """The loss of the last layer and of this step's early exits.

    tokens: (batch, length + 1). Returns a number in nats: the last layer's loss plus
    exit_weight i / layers of that at exit i. Source: 2404.16710, equations 1 to 4, with
    the specification's weights.
    """
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    place = tokens.device.type
    with torch.autocast(place, torch.bfloat16, enabled=recipe.bf16):
        law = None
        if teacher is not None:
            with torch.no_grad():
                law = torch.softmax(teacher(inputs).float(), dim=-1)
        streams = model.streams(inputs, kept(model, len(tokens), recipe, step))
        total = token_loss(model.read(streams[-1]), targets, law)
        for number in exits(model, recipe, step):
            weight = recipe.exit_weight * number / len(streams)
            logits = model.read(streams[number - 1])
            total = total + weight * token_loss(logits, targets, law)
    return total


def token_loss(logits: Tensor, targets: Tensor, law: Tensor | None = None) -> Tensor:
    """Mean cross-entropy in nats with the tokens, or with a law.

    logits: (batch, length, vocab); targets: (batch, length); law: (batch, length,
    vocab) or None.
    """
    logits = logits.float() if logits.dtype != torch.float64 else logits
    aim = targets.flatten() if law is None else law.flatten(0, 1)
    return functional.cross_entropy(logits.flatten(0, 1), aim)


def kept(model: Transformer, batch: int, recipe: Recipe, step: int) -> Tensor | None:
    """Which layers run for which sequence at a step: (layers, batch) of 0 and 1.

    Layer l (from 0) is left out with probability drop (exp(l ln 2 / (L - 1)) - 1).
    None where nothing is ever left out. Source: 2404.16710, section 4.1.
    """
    layers, place = model.sizes.layers, model.embedding.weight.device
    if recipe.drop == 0 or layers == 1:
        return None
    generator = torch.Generator().manual_seed(mixed(recipe.seed, step, DROPS))
    share = 2 ** (torch.arange(layers) / (layers - 1)) - 1
    u = torch.rand(layers, batch, generator=generator)
    return (u >= recipe.drop * share[:, None]).to(place)


def exits(model: Transformer, recipe: Recipe, step: int) -> list[int]:
    """The early exits, 1 to layers - 1, that have a loss at a step."""
    generator = torch.Generator().manual_seed(mixed(recipe.seed, step, EXITS))
    order = torch.randperm(model.sizes.layers - 1, generator=generator) + 1
    return order[: recipe.exits].tolist()


@torch.no_grad()
def losses(
    model: Transformer, text: Tensor, length: int = 192, batch: int = 16
) -> list[float]:
    """The mean loss at every exit, the last layer included, in nats a token.

    text: (tokens,), cut into windows that a model reads from an empty memory; length:
    of each; batch: at once. A rest shorter than a window is left out. Returns `layers`
    numbers. Raises ValueError for a text that is too short.
    """
    need(len(text) > length, f"The text has {len(text)} tokens; length is {length}.")
    rows = text[: len(text) // (length + 1) * (length + 1)].view(-1, length + 1)
    was, place = model.training, model.embedding.weight.device
    model.eval()
    total = torch.zeros(model.sizes.layers, dtype=torch.float64)
    for part in rows.to(place).split(batch):
        for number, x in enumerate(model.streams(part[:, :-1])):
            total[number] += len(part) * float(token_loss(model.read(x), part[:, 1:]))
    model.train(was)
    return (total / len(rows)).tolist()


# -- the optimiser --------------------------------------------------------------------


class Both:
    """Muon on the layers' matrices and AdamW on the rest, as one optimiser.

    model; recipe: its optimiser ("adamw": on everything) and weight_decay. Source:
    Jordan et al. 2024; 2502.16982 (rates that match AdamW's).
    """

    def __init__(self, model: nn.Module, recipe: Recipe) -> None:
        matrices, rest = [], []
        for name, p in model.named_parameters():
            inner = p.ndim == 2 and "embedding" not in name
            (matrices if inner and recipe.optimiser == "muon" else rest).append(p)
        shared = dict(lr=recipe.lr, weight_decay=recipe.weight_decay)
        self.parts: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(rest, betas=BETAS, **shared)
        ]
        if matrices:
            muon = torch.optim.Muon(matrices, adjust_lr_fn="match_rms_adamw", **shared)
            self.parts.append(muon)

    def rate(self, lr: float) -> None:
        """Set the rate of the next step."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = lr

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for part in self.parts:
            part.zero_grad()

    def step(self) -> None:
        """One step of both."""
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict:
        """What a checkpoint keeps."""
        return {str(k): part.state_dict() for k, part in enumerate(self.parts)}

    def load_state_dict(self, state: dict) -> None:
        """Take over what a checkpoint kept. Raises ValueError for another's."""
        need(len(state) == len(self.parts), "The optimiser's state is another's.")
        for k, part in enumerate(self.parts):
            part.load_state_dict(state[str(k)])
