"""Which trials the recorded comparison runs: plain settings, made before it starts.

In order: `pilot` looks for speech on which an effect can appear, `grid` and `second`
tune every arm on a seed of its own, `comparison` and `sweep` are what is judged.
`explored` runs what several trials begin with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any

from lib.bl_just.parts import speech
from lib.bl_just.study import exploring, training
from lib.kit.checks import choice
from lib.kit.trials import Trial, trials
from lib.speech.conformer import Conformer

# What was tried before, with one seed of pre-training each:
# - four labelled utterances, quiet speech, gamma to 1 (the collection's prototype): the
#   CTC loss is at zero long before the end, so the upper level has nothing to trade,
#   and BL-JUST and PT + FT could not be told apart;
# - the pilot below, 16 utterances, every arm as it stands in `schedules`: PT + FT gains
#   on supervised training on both kinds of speech, BL-JUST is between the two; there is
#   more to gain in noise, which the comparison therefore takes;
# - the grid, four settings an arm: supervised training, PT + FT and self-training were
#   best at their highest rate, and BL-JUST was behind them in all four, with a last
#   stage in which the encoder hardly moved. That is no property of the method, so
# - the second round gives BL-JUST their rate, and the others a step beyond their edge;
# - a wider grammar (eight words a slot) is possible (`width`), and was not run.
# Not tuned for any arm: batch sizes, the encoder, N_ssl and N_ctc, the shape of gamma's
# rise, the head's rate in the joint phase.
TUNING_SEED, TUNING_SUBSET = 9, 3  # in no comparison; subset 3 is the last of 64
SEEDS = (0, 1, 2)
N_SSL, N_CTC = 600, 300  # the budget, which `training` has by default
SHARES = (300, 450)  # steps of exploration, of 600
SPEECH: dict[str, dict[str, Any]] = {
    "quiet": {"width": 4, "snr": [10, 30]},
    "noisy": {"width": 4, "snr": [0, 15]},
}
CHOSEN = "noisy"  # after the pilot
PILOT = ("supervised", "pt_ft", "bl_just")
ABLATIONS = ("no exploration", "no fine-tuning")
GAMMAS = (0.0, 0.1, 0.3, 1.0, 3.0)  # of the sweep; the comparison has one of them
COSTLY = {"fixed_sum": (16,)}  # arms that share no exploration: at these n only


USUAL = {  # what trials are not asked for, so that they are found again
    name: parameter.default
    for function in (speech, training)
    for name, parameter in signature(function).parameters.items()
}
NET = {name: p.default for name, p in signature(Conformer).parameters.items()}


def where_of(kind: str, **size: Any) -> dict[str, Any]:
    """What all trials of one comparison share; what is usual is left out.

    kind: of speech, a key of SPEECH or a folder that holds LibriSpeech; size: what else
    `training` takes: N_ssl, N_ctc, V, every, device, test, size (of the encoder).
    Raises ValueError for another word.
    """
    net = {k: v for k, v in size.pop("size", {}).items() if v != NET[k]}
    given = {k: v for k, v in size.items() if v != USUAL[k]}
    given |= {"size": net} if net else {}
    if "/" in kind:
        return {"root": kind, **given}
    choice("speech", kind, SPEECH)
    return {**SPEECH[kind], **given}


def explorations(
    seeds: Sequence[int], where: Mapping[str, Any], **how: Any
) -> list[Trial]:
    """Run the explorations of some seeds.

    seeds; where: of `where_of`; how: of `trials`.
    """
    rest = {k: v for k, v in where.items() if k not in ("N_ssl", "N_ctc")}
    rest |= {"steps": where["N_ssl"]} if "N_ssl" in where else {}
    asked = [{"seed": s, "marks": _scaled(where, SHARES), **rest} for s in seeds]
    return trials(exploring, asked, **how)


def explored(seeds: Sequence[int], where: Mapping[str, Any], **how: Any) -> dict:
    """The keys of `explorations` by seed."""
    return {t.settings["seed"]: t.key for t in explorations(seeds, where, **how)}


def _scaled(where: Mapping[str, Any], steps: Sequence[int]) -> list[int]:
    """Steps of the usual budget in that of `where`."""
    return [step * where.get("N_ssl", N_SSL) // N_SSL for step in steps]


def one(
    arm: str, seed: int, n: int, where: Mapping[str, Any], source: str, **chosen: Any
) -> dict[str, Any]:
    """The settings of one trial: subset and fine-tuning seed follow the seed.

    chosen: what the grid chose for the arm, another subset or tune. The source is left
    out where the arm explores nothing.
    """
    found = {"arm": arm, "seed": seed, "n": n, "subset": seed, "tune": seed}
    found |= {**chosen, **where}
    explores = arm not in ("supervised", "fixed_sum")
    explores &= chosen.get("options", {}).get("explore") != 0
    return found | ({"source": source} if explores else {})


def pilot(sources: Mapping[str, str], n: int = 16, **size: Any) -> list[dict[str, Any]]:
    """Three arms on every kind of speech, untuned: is there anything to gain?

    sources: of the tuning seed, by the name of the speech (`explored` on each); size:
    of `where_of`.
    """
    return [
        one(arm, TUNING_SEED, n, where_of(name, **size), key, subset=TUNING_SUBSET)
        for name, key in sources.items()
        for arm in PILOT
    ]


def four_of(where: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The four settings of every arm among which the grid chooses."""
    rates, shares = (1.5e-3, 3e-3), _scaled(where, SHARES)
    return {
        "supervised": [{"options": {"lr": lr}} for lr in (5e-4, 1e-3, 2e-3, 4e-3)],
        "pt_ft": [
            {"options": {"lr": lr, "encoder": e}} for lr in rates for e in (0.3, 1)
        ],
        "self_training": [
            {"keep": keep, "options": {"lr": lr}} for keep in (0.5, 0.9) for lr in rates
        ],
        "fixed_sum": [{"options": {"gamma": g}} for g in (0.1, 0.3, 1.0, 3.0)],
        "bl_just": [
            {"options": {"explore": e, "factor": f}} for e in shares for f in (0.3, 1.0)
        ],
    }


def grid(where: Mapping[str, Any], source: str, n: int = 16) -> list[dict[str, Any]]:
    """Every arm's four settings on the tuning seed."""
    return _tuned(four_of(where), where, source, n)


def _tuned(settings, where, source, n) -> list[dict[str, Any]]:
    return [
        one(arm, TUNING_SEED, n, where, source, subset=TUNING_SUBSET, **chosen)
        for arm, some in settings.items()
        for chosen in some
    ]


def more_of(where: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The second round: what the first one suggested, most of it for BL-JUST."""
    early, late = _scaled(where, SHARES)
    shared = where.get("N_ctc", N_CTC) // 2
    fast = {"lr": 3e-3, "encoder": 1}
    return {
        "bl_just": [
            {"options": {"explore": late, "factor": 1.0, **fast}},
            {"options": {"explore": late, "factor": 2.0, **fast}},
            {"options": {"explore": late, "factor": 1.0, **fast, "gamma": 0.3}},
            {"options": {"explore": early, "shared": shared, "factor": 1.0, **fast}},
        ],
        "pt_ft": [
            {"options": {"encoder": 1, "lr": 4.5e-3}},
            {"options": {"encoder": 2, "lr": 3e-3}},
        ],
        "supervised": [{"options": {"lr": 6e-3}}],
        "self_training": [{"keep": 0.9, "options": fast}],
    }


def second(where: Mapping[str, Any], source: str, n: int = 16) -> list[dict[str, Any]]:
    """The settings of `more_of` on the tuning seed."""
    return _tuned(more_of(where), where, source, n)


def best(done: Sequence[Trial]) -> dict[str, dict[str, Any]]:
    """Of every arm the setting with the lowest PER in finished rounds of tuning."""
    found: dict[str, Trial] = {}
    for trial in done:
        old = found.get(trial.settings["arm"])
        if old is None or trial.result["per"] < old.result["per"]:
            found[trial.settings["arm"]] = trial
    names = ("keep", "options")
    return {
        arm: {name: t.settings[name] for name in names if name in t.settings}
        for arm, t in found.items()
    }


def _pair(seed: int, k: int, seeds: int) -> dict[str, int]:
    """Labelled subset and fine-tuning seed number k of a pre-training seed."""
    return {"subset": (seed + k) % max(seeds, 3), "tune": seed + 10 * k}


def changes(where: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What each of ABLATIONS changes in the options of BL-JUST.

    Without exploration the first stage has the rate of exploration, not the lower one
    that the grid may choose for a joint phase behind it: that would train less.
    """
    ssl, ctc = where.get("N_ssl", N_SSL), where.get("N_ctc", N_CTC)
    return {
        "no exploration": {"explore": 0, "warm": 0.0, "factor": 1.0},
        "no fine-tuning": {"explore": ssl - ctc, "shared": ctc},
    }


def comparison(
    where: Mapping[str, Any],
    sources: Mapping[int, str],
    chosen: Mapping[str, Mapping[str, Any]],
    ns: Sequence[int] = (4, 16, 64),
    middle: int = 16,
    pairs: int = 1,
    only: Mapping[str, Sequence[int]] = COSTLY,
) -> list[dict[str, Any]]:
    """All arms over n, the ablations at one n; every pre-training seed alike.

    where; sources: by seed; chosen: of `best`; ns: labelled utterances; middle: n of
    the ablations; pairs: (subset, fine-tuning seed) of each pre-training seed at that
    n, the same in all arms, and one at the others; only: the n of some arms.
    """
    found = []
    own = chosen["bl_just"].get("options", {})
    for seed, key in sources.items():
        for k in range(pairs):
            pair = _pair(seed, k, len(sources))
            found += [
                one(arm, seed, n, where, key, **pair, **chosen[arm])
                for n in (ns if k == 0 else (middle,))
                for arm in chosen
                if n in only.get(arm, ns)
            ]
            found += [
                one("bl_just", seed, middle, where, key, **pair, options=own | changed)
                for changed in changes(where).values()
            ]
    return found


def sweep(
    where: Mapping[str, Any],
    sources: Mapping[int, str],
    chosen: Mapping[str, Mapping[str, Any]],
    n: int = 16,
    gammas: Sequence[float] = GAMMAS,
) -> list[dict[str, Any]]:
    """BL-JUST with every last gamma but its own, as tuned otherwise.

    Gamma 0 needs as many CTC evaluations as joint steps: it explores all but those.
    """
    own = chosen["bl_just"].get("options", {})
    shared = where.get("N_ctc", N_CTC) // 2
    alone = {"explore": where.get("N_ssl", N_SSL) - shared, "shared": shared}
    return [
        one(
            *("bl_just", seed, n, where, key),
            **_pair(seed, 0, len(sources)),
            options=own | {"gamma": gamma} | ({} if gamma else alone),
        )
        for seed, key in sources.items()
        for gamma in gammas
        if gamma != own.get("gamma", 1.0)
    ]


def run(
    asked: Sequence[Mapping[str, Any]], workers: int | None = None, bar: bool = True
) -> list[Trial]:
    """Run settings of these lists."""
    return trials(training, asked, workers=workers, bar=bar)
