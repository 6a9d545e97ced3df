"""One model with three groups of parameters, and the losses of both levels.

theta, the encoder, belongs to both; phi, the CTC head, to the upper level; eta, the
head of masked prediction, to the lower one. `run_stage` hands both losses with their
weights to `lib.speech.pretraining.train`, which skips those of weight 0: there is no
second loop, and gamma = 0 is supervised training bit for bit.
Source: 2401.06980 (BL-JUST).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lib.bl_just.schedules import Budget, Stage
from lib.codebooks import KMeans, RandomProjection
from lib.kit import parallel
from lib.kit.checks import choice, need
from lib.speech.batches import Batch, Stream, in_order, padded, spec_augment
from lib.speech.conformer import Conformer, Recogniser, without_dropout
from lib.speech.corpus import Corpus
from lib.speech.ctc import transcripts
from lib.speech.masking import generator, seeded
from lib.speech.pretraining import Loss, Predictor, train
from lib.speech.recognition import FINE_TUNE, recognition_loss

LABELS = ("best_rq", "kmeans")
FITTED = 200  # utterances that k-means is fitted on
LOSSES = ("ssl", "ctc", "pseudo")


class Joint(nn.Module):
    """A recogniser and a masked predictor on one encoder.

    symbols: of the recogniser, without the blank; V: codes of the predictor; seed: of
    theta and eta; tune: of phi; size: arguments of `Conformer`. Each group draws its
    first values on its own. Raises ValueError for sizes.
    """

    def __init__(
        self,
        symbols: int,
        V: int = 64,
        seed: int = 0,
        tune: int = 0,
        size: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        with seeded(seed, "theta"):
            encoder = Conformer(**dict(size or {}))
        with seeded(seed, "eta"):
            self.predictor = Predictor(encoder, {"ssl": V})
        with seeded(tune, "phi"):
            self.recogniser = Recogniser(encoder, symbols)

    @property
    def theta(self) -> Conformer:
        """The encoder, of both levels."""
        return self.recogniser.encoder

    @property
    def phi(self) -> nn.Module:
        """The CTC head, of the upper level."""
        return self.recogniser.out

    @property
    def eta(self) -> nn.Module:
        """The head of masked prediction, of the lower level."""
        return self.predictor.heads

    def groups(self, stage: Stage) -> dict[str, tuple[nn.Module, float]]:
        """The three groups with the factors of a stage on their rates."""
        theta, phi = stage.rates
        return {
            "theta": (self.theta, theta),
            "phi": (self.phi, phi),
            "eta": (self.eta, 1.0),
        }


def quantizer(
    labels: str, pool: Corpus, V: int = 64, seed: int = 0, device: str = "cpu"
) -> Callable[[Tensor], Tensor]:
    """Where the lower level's labels come from: a function of frames (..., features).

    labels: "best_rq", a random projection, or "kmeans" of the pool's first utterances'
    frames; pool; V: codes; seed: of both; device: of the frames. Raises ValueError for
    another word.
    """
    choice("labels", labels, LABELS)
    if labels == "best_rq":
        return RandomProjection(pool.features.shape[1], V=V, seed=seed).to(device)
    some = pool.take(range(min(FITTED, len(pool))))
    found = KMeans(V, seed=seed).fit(torch.from_numpy(some.all_features()))
    found.codes = found.codes.to(device)
    return found


# -- batches and losses -------------------------------------------------------------


@dataclass
class Data:
    """What the losses read: the pool, transcribed utterances, pseudo-labelled ones.

    pool; label: of frames, for the lower level; transcribed: None where CTC is not
    used; seed: of the pool's batches; tune: of the others'; frames, labelled_frames: of
    a batch; device; pseudo: set by the self-training arm.
    """

    pool: Corpus
    label: Callable[[Tensor], Tensor]
    transcribed: Corpus | None = None
    seed: int = 0
    tune: int = 0
    frames: int = 1000
    labelled_frames: int = 500
    device: str = "cpu"
    pseudo: Corpus | None = None

    def __post_init__(self) -> None:
        need(
            self.transcribed is None or len(self.transcribed) > 0,
            "There are no labelled utterances; give some, or None.",
        )


class Step(NamedTuple):
    """The batches of one step: those whose loss has a weight, and whether CTC may
    reach theta."""

    ssl: Batch | None
    ctc: Batch | None
    pseudo: Batch | None
    frozen: bool


def stepper(
    stage: Stage, data: Data, used: Mapping[str, int] | None = None
) -> Callable[..., Step]:
    """The batches of every step of a stage, from the step alone; of several processes
    each its own.

    used: mini-batches that earlier stages took of each stream, which goes on. Returns a
    function of the step, and of the names wanted where they are not those with a
    weight. Raises ValueError for a weight on utterances that are not there.
    """
    sources = {
        "ssl": (data.pool, data.frames, data.seed),
        "ctc": (data.transcribed, data.labelled_frames, data.tune),
        "pseudo": (data.pseudo, data.labelled_frames, data.tune),
    }
    weights = {name: getattr(stage, name) for name in LOSSES}
    for name in LOSSES:
        need(
            sources[name][0] is not None or not any(weights[name]),
            f"The stage {stage.name} has {name} losses, but there are no utterances "
            "for them.",
        )
    streams = {
        name: Stream(corpus.lengths, frames, seed)
        for name, (corpus, frames, seed) in sources.items()
        if corpus is not None
    }
    before = {
        name: list(accumulate((w > 0 for w in row), initial=(used or {}).get(name, 0)))
        for name, row in weights.items()
    }

    def at(step: int, wanted: Sequence[str] | None = None) -> Step:
        names = [n for n in LOSSES if weights[n] and weights[n][step]]
        names = names if wanted is None else list(wanted)
        numbers = {n: parallel.part(before[n][step]) for n in names}
        made = {
            n: padded(sources[n][0], streams[n].at(number), data.device)
            for n, number in numbers.items()
        }
        return Step(*(made.get(n) for n in LOSSES), stage.is_frozen(step))

    return at


def losses_of(model: Joint, data: Data, stage: Stage) -> dict[str, Loss]:
    """The losses of a stage by name: "ssl", "ctc" and, where it is used, "pseudo"."""

    def ssl(step: Step, g: torch.Generator) -> Tensor:
        x, lengths = step.ssl.features, step.ssl.lengths
        masked = model.predictor(x, lengths, g)
        return model.predictor.loss(masked, data.label(x), "ssl")

    def ctc(batch: Batch, frozen: bool, g: torch.Generator) -> Tensor:
        how = (FINE_TUNE.share, FINE_TUNE.span, FINE_TUNE.bands)
        x = spec_augment(batch.features, batch.lengths, g, *how)
        outputs = model.recogniser(x, batch.lengths, frozen=frozen)
        said = transcripts(batch.targets, batch.target_lengths)
        return recognition_loss(outputs, batch.lengths, said)

    all_of = {
        "ssl": ssl,
        "ctc": lambda step, g: ctc(step.ctc, step.frozen, g),
        "pseudo": lambda step, g: ctc(step.pseudo, step.frozen, g),
    }
    weights = {n: getattr(stage, n) for n in LOSSES if n != "pseudo" or stage.pseudo}
    return {n: Loss(all_of[n], row.__getitem__) for n, row in weights.items()}


# -- a stage ------------------------------------------------------------------------


def run_stage(
    model: Joint,
    stage: Stage,
    data: Data,
    *,
    seed: int = 0,
    used: Mapping[str, int] | None = None,
    look: Callable[[int], None] | None = None,
    **options: Any,
) -> dict[str, list[float]]:
    """Train the model through one stage, in place.

    seed: of masks, augmentation and dropout; used: see `stepper`; look: called with the
    number of steps done; options: path, every, settings, bar of `train`. Returns its
    history: a loss that was not computed is nan. Raises ValueError as `stepper` and
    `train`.
    """
    return train(
        model,
        losses_of(model, data, stage),
        stepper(stage, data, used),
        stage.recipe,
        groups=model.groups(stage),
        after=look,
        seed=seed,
        **options,
    )


def evaluated(history: Mapping[str, Sequence[float]]) -> dict[str, int]:
    """How many gradients of each loss a history holds: its entries that are not nan."""
    return {n: sum(not math.isnan(v) for v in history.get(n, ())) for n in LOSSES}


def spent(histories: Sequence[Mapping[str, Sequence[float]]]) -> Budget:
    """The gradients of all stages together, pseudo-labels among CTC."""
    rows = [evaluated(history) for history in histories]
    return Budget(
        sum(row["ssl"] for row in rows), sum(row["ctc"] + row["pseudo"] for row in rows)
    )


def adopt(
    source: Path,
    path: Path,
    model: Joint,
    stage: Stage,
    settings: Mapping[str, Any],
    own: Mapping[str, Any],
) -> None:
    """Enter another run's checkpoint as one of this run, with this model's own phi.

    source: written while the lower level alone was trained, so that phi had no part in
    it; path: where `run_stage` will look for it; stage: the one to go on with;
    settings: of this run, which must be the source's too; own: those that it does not
    have. Nothing happens where `path` exists. Raises ValueError for other settings.
    """
    if path.exists():
        return
    saved = torch.load(source, map_location="cpu", weights_only=True)
    asked = asdict(stage.recipe) | dict(settings)
    may_differ = {"turn", "factor"}  # what comes after the exploration
    other = {
        name: (saved["settings"].get(name), value)
        for name, value in asked.items()
        if name not in may_differ and saved["settings"].get(name) != value
    }
    need(
        not other,
        "The source explored in another way: "
        + ", ".join(f"{n} was {a}, is {b}" for n, (a, b) in other.items())
        + ". Give a source of the same settings.",
    )
    here = model.state_dict()
    heads = {n: v for n, v in here.items() if n.startswith("recogniser.out.")}
    saved["settings"] |= asked | dict(own)
    saved["model"] |= heads
    scales = (*stage.rates, 1.0)
    for group, scale in zip(saved["optimiser"]["param_groups"], scales, strict=True):
        group["scale"] = scale
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    torch.save(saved, part)
    part.replace(path)


# -- both levels on what they share -------------------------------------------------


@torch.no_grad()
def levels(model: Joint, data: Data, test: Corpus) -> dict[str, float]:
    """Both losses of a model: "ssl" and, where it has labels, "ctc" on a test set, and
    "ctc_labelled" on what it was trained on.

    Means over utterances, without dropout and augmentation; the same masks are drawn in
    all trials.
    """
    found = {"ssl": 0.0, "ctc": 0.0}
    with without_dropout(model):
        for number, batch in enumerate(in_order(test, device=data.device)):
            masked = model.predictor(
                batch.features, batch.lengths, generator(number, "levels")
            )
            value = model.predictor.loss(masked, data.label(batch.features), "ssl")
            found["ssl"] += float(value) * len(batch) / len(test)
            found["ctc"] += _ctc(model, batch) * len(batch) / len(test)
        if data.transcribed is None:
            return {"ssl": found["ssl"]}
        known = list(in_order(data.transcribed, device=data.device))
        total = sum(_ctc(model, batch) * len(batch) for batch in known)
    return found | {"ctc_labelled": total / len(data.transcribed)}


def _ctc(model: Joint, batch: Batch) -> float:
    said = transcripts(batch.targets, batch.target_lengths)
    outputs = model.recogniser(batch.features, batch.lengths)
    return float(recognition_loss(outputs, batch.lengths, said))


class Pull(NamedTuple):
    """Norms of both losses' gradients on theta, and the cosine between them."""

    ssl: float
    ctc: float
    cosine: float


def pull(
    model: Joint, stage: Stage, data: Data, step: int, seed: int = 0, **options: Any
) -> Pull:
    """How both levels pull at theta with the batches of one step; nothing moves.

    seed: of masks and dropout; options: `used` of `stepper`. Costs a gradient of each
    loss, which no budget counts.
    """
    batch = stepper(stage, data, **options)(step, ("ssl", "ctc"))._replace(frozen=False)
    theta = list(model.theta.parameters())
    slopes = []
    for name in ("ssl", "ctc"):
        with seeded(seed, step, name, "pull") as g:
            value = losses_of(model, data, stage)[name].of(batch, g)
        found = torch.autograd.grad(value, theta, allow_unused=True)
        flat = [torch.zeros_like(p) if s is None else s for s, p in zip(found, theta)]
        slopes.append(torch.cat([s.flatten() for s in flat]))
    norms = [float(s.norm()) for s in slopes]
    product = float(slopes[0] @ slopes[1])
    return Pull(*norms, product / max(math.prod(norms), 1e-30))
