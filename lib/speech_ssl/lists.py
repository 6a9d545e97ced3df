"""Which trials the recorded comparison of 32 asks for, and what its arms are called.

A setting names only what differs from the defaults of its trial function, so that two
lists that ask for the same trial share its result. No trial imports this file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lib.kit.checks import choice
from lib.speech_ssl.arms import ARMS

SCRATCH = "scratch"  # what stands in tables for "not pre-trained"
SEEDS = (0, 1, 2)  # of pre-training
PAIRS = ((0, 0), (1, 1), (2, 2))  # labelled subset and fine-tuning seed
STEPS, LABELLED = 600, 4
# What was tried before these lists were fixed, one seed of pre-training each:
# - longer runs (2,000 steps of BEST-RQ and of labels from a fitted quantizer): a better
#   probe, and no difference in PER outside the spread of the fine-tuning seeds;
# - random-projection labels of a layer without a gradient; quantizers fitted early (the
#   codes go stale), or to whitened directions; equal weights with a gradient through
#   the labels, where labels and encoder both collapse;
# - one fine-tuning seed: it moves an encoder's mean PER by up to 0.15, hence three.
# Not tuned for any arm: rate 2e-3, mask, batches, V = 64, and the layer k = 2 of 3.


@dataclass(frozen=True)
class Source:
    """One answer to "where do the labels come from?".

    name: for figures; label: what frame t is called; moves: when that changes;
    gradient: where it flows beside the prediction; line: the one changed line; paper.
    """

    name: str
    label: str
    moves: str
    gradient: str
    line: str
    paper: str


SOURCES: dict[str, Source] = {
    "best_rq": Source(
        name="BEST-RQ",
        label="random projection of the input",
        moves="never",
        gradient="-",
        line="nearest(x @ A, C)",
        paper="2202.01855",
    ),
    "two_codebooks": Source(
        name="two codebooks",
        label="two random projections, a head each",
        moves="never",
        gradient="-",
        line="nearest(x @ A, C), nearest(x @ B, D)",
        paper="2501.16131",
    ),
    "kmeans": Source(
        name="k-means of input",
        label="k-means of the input (HuBERT, round 1)",
        moves="never",
        gradient="-",
        line="nearest(x, means(x))",
        paper="2106.07447",
    ),
    "fitted_input": Source(
        name="fitted, input",
        label="principal directions and k-means of the input",
        moves="never",
        gradient="-",
        line="nearest(x @ PCA, means(x @ PCA))",
        paper="2606.30671",
    ),
    "relabel_best_rq": Source(
        name="relabelled",
        label="BEST-RQ, then k-means of layer 2 (HuBERT, BEATs)",
        moves="once, half way",
        gradient="-",
        line="nearest(h2, means(h2))",
        paper="2212.09058",
    ),
    "dinosr": Source(
        name="DinoSR",
        label="moving clusters of an averaged teacher's top layers",
        moves="every step",
        gradient="-",
        line="nearest(teacher(x), means), means follow",
        paper="2305.10005",
    ),
    "wav2vec": Source(
        name="wav2vec 2.0",
        label="learned product codes of the input, against distractors",
        moves="every step",
        gradient="to the codes",
        line="gumbel(x @ W), loss: the right one of 21",
        paper="2006.11477",
    ),
    "birq": Source(
        name="BiRQ",
        label="Gumbel selection from layer 2, beside BEST-RQ's",
        moves="every step",
        gradient="through the labels",
        line="gumbel(50 cos(h2 @ B, D)), 4 %; nearest(x @ A, C), 96 %",
        paper="2509.15430",
    ),
    "birq_detached": Source(
        name="BiRQ, detached",
        label="the same, labels detached",
        moves="every step",
        gradient="-",
        line="sg(gumbel(50 cos(h2 @ B, D))), ...",
        paper="control",
    ),
    "birq_fitted": Source(
        name="BiRQ, fitted",
        label="nearest code of a quantizer fitted to layer 2, detached, 1 : 1",
        moves="every step from 30 %",
        gradient="-",
        line="sg(nearest(h2 @ PCA, means)), own head; ...",
        paper="control",
    ),
}

# Who is compared with whom, with its source; the second with BiRQ's CPU time.
COMPARED = (
    ("birq", "best_rq", "2509.15430, tables 1 to 3"),
    ("birq", "best_rq", "2509.15430, tables 1 to 3"),
    ("birq_detached", "birq", "control of ours, for 2509.15430"),
    ("kmeans", "best_rq", "2106.07447, round 1, against 2202.01855"),
    ("relabel_best_rq", "best_rq", "2106.07447, round 2"),
    ("birq_fitted", "best_rq", "variant of ours, for 2509.15430"),
    ("fitted_input", "birq_fitted", "control of ours, for 2509.15430"),
    ("two_codebooks", "best_rq", "2501.16131"),
    ("dinosr", "best_rq", "2305.10005"),
    ("wav2vec", "best_rq", "2006.11477"),
)


def name_of(arm: str) -> str:
    """What an arm is called in figures: its name in SOURCES, else the word itself."""
    return SOURCES[arm].name if arm in SOURCES else arm


def pretrainings(
    arms: Iterable[str], seeds: Iterable[int], steps: int, **how: Any
) -> list[dict[str, Any]]:
    """The settings of `study.pretraining`, seed by seed, so that arms grow together.

    arms: of ARMS; seeds; steps; how: other settings of all. Raises ValueError for an
    arm that does not exist.
    """
    arms = list(arms)
    for arm in arms:
        choice("The arm", arm, ARMS)
    return [
        {"arm": arm, "seed": seed, "steps": steps, **how}
        for seed in seeds
        for arm in arms
    ]


def adaptations(
    sources: Iterable[str],
    n: int,
    pairs: Iterable[Sequence[int]] = PAIRS,
    **how: Any,
) -> list[dict[str, Any]]:
    """The settings of `adaptation.adapting`: every source with the same pairs.

    sources: keys of pre-training trials, "" for random weights; n: utterances; pairs:
    labelled subset and fine-tuning seed; how: other settings of all.
    """
    pairs = [tuple(pair) for pair in pairs]
    return [
        {"source": source, "n": n, "subset": subset, "seed": seed, **how}
        for source in sources
        for subset, seed in pairs
    ]


def differing(values: Mapping[str, Any], usual: Mapping[str, Any]) -> dict[str, Any]:
    """What differs from the usual values: only that goes into a setting."""
    return {key: value for key, value in values.items() if value != usual.get(key)}
