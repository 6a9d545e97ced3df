"""Decoding: how much faster than plain cached decoding, and than transformers.

`methods` decodes held-out prompts by every method in turns with plain decoding of the
same model and prompt; its `ratio` is the median over prompts of plain's time over the
method's, `low` and `high` the 10 and 90 %. Every method's draft length, and which is
the `best`, is chosen on other prompts than those it is judged on. Two workloads: "free"
text, and "copy", where a function is edited. `distinct` is the share of different
trigrams in what was written: a text that loops flatters every draft, so greedy texts
that do not (at least half of the trigrams differ) are judged once more by themselves.
`peers` is the same model and weights as a Llama of transformers, with its own
generation, each side at its own best length; `ratio` is its time over ours. `costs` is
c(k), the time of a pass over k tokens over that of one, for random weights at several
sizes, and `predicted` what it promises at the acceptance measured here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch

from ci.tools.bench import BenchmarkError, Options, Target, installed
from lib import draft_trees as trees
from lib import language
from lib import self_speculative as own
from lib import speculative as sp

PEERS = ("transformers==5.23.0",)
_ISSUE = "issue 9"
NEW, LENGTH, LINES = 96, 192, 32  # tokens of a text, of a prompt; prompts judged
TUNED = 16  # other prompts, on which lengths are chosen
GAMMAS = (1, 3, 5, 7)  # with the last token 2, 4, 6 and 8 rows: see `streamed`
THEIRS = (1, 2, 3, 4, 5, 7)  # what transformers may choose from
COLD, HOT = 0.0, 1.0
UNSURE = "draft, until unsure"
BLOCKS = ("draft, block rule", "EAGLE, block rule")
CALM, DISTINCT = "no loops", 0.5  # greedy texts of which at least half is new
SIZES = {  # for c(k): random weights
    "0.5 M": language.Sizes(d=128, layers=2, heads=4),
    "6.5 M": language.Sizes(d=256, layers=8, heads=4),
    "25 M": language.Sizes(d=512, layers=8, heads=8),
    "85 M": language.Sizes(d=768, layers=12, heads=12),
    "150 M": language.Sizes(d=1024, layers=12, heads=16),
}
WIDTHS = (1, 2, 3, 4, 6, 8, 12, 16)

TARGETS = [
    Target("best", {"workload": "free", "T": HOT}, "ratio", at_least=1.3,
           source=_ISSUE),
    Target("best", {"workload": f"free, {CALM}", "T": COLD}, "ratio", at_least=1.5,
           source=_ISSUE),
    Target("best", {"workload": f"copy, {CALM}", "T": COLD}, "ratio", at_least=1.5,
           source=_ISSUE),
    *(
        Target("peers", {"method": method}, "ratio", at_least=1.2, source=_ISSUE)
        for method in ("draft", "look-up")
    ),
]  # fmt: skip


class Setting:
    """The models, tables and prompts of a run.

    quick: tiny random models, for a look at whether all runs.
    """

    def __init__(self, quick: bool) -> None:
        corpus = language.shipped_corpus("python")
        self.tokenizer = language.shipped_bpe()
        if quick:
            sizes = language.Sizes(d=32, layers=2, heads=2)
            self.models = {
                name: language.Transformer(sizes, seed).requires_grad_(False)
                for name, seed in (("target", 0), ("draft", 1))
            }
        else:
            self.models = {n: language.shipped_model(n)[0] for n in ("target", "draft")}
        big = self.models["target"]
        if quick:
            self.heads = {
                head.kind: head for head in (own.Eagle(big), own.Recurrent(big))
            }
        else:
            self.heads = {
                k: own.shipped_head(k, big)[0] for k in ("eagle", "recurrent")
            }
        decoders = {n: language.Decoder(m) for n, m in self.models.items()}
        self.leave = own.ExitTarget(decoders["target"], max(big.sizes.layers // 4, 1))
        self.hearing = sp.NeuralTarget(decoders["target"], hidden=True)
        self.target = sp.NeuralTarget(decoders["target"])
        self.draft = sp.NeuralTarget(decoders["draft"])
        text = language.stream(self.tokenizer, corpus.texts("train"))
        text = text[:20_000] if quick else text
        self.table = language.Table(text.numpy(), self.target.vocab, 5)
        lines, tuned, self.new = (2, 1, 12) if quick else (LINES, TUNED, NEW)
        self.prompts = {
            "free": partial(language.prompts, corpus, self.tokenizer, length=LENGTH),
            "copy": partial(language.copy_prompts, corpus, self.tokenizer),
        }
        self.asked: dict[tuple[str, str], list[list[int]]] = {}
        for work, make in self.prompts.items():
            # Drawn at once: two draws could hold the same task.
            found = [prompt.tokens for prompt in make(number=lines + tuned)]
            self.asked[work, "judge"] = found[:lines]
            self.asked[work, "tune"] = found[lines:]
        self.gammas = (1, 2) if quick else GAMMAS


def offers(s: Setting) -> dict[str, Callable[[], sp.Drafter]]:
    """The drafters that are compared, by name."""
    return {
        "draft": lambda: sp.ModelDrafter(s.draft),
        UNSURE: lambda: sp.ModelDrafter(s.draft),
        BLOCKS[0]: lambda: sp.ModelDrafter(s.draft),
        "n-gram": lambda: sp.TableDrafter(s.table),
        "look-up": lambda: sp.LookUp(6, 2),
        "look-up, else draft": lambda: sp.Either(
            sp.LookUp(6, 2), sp.ModelDrafter(s.draft)
        ),
        "look-up, else n-gram": lambda: sp.Either(
            sp.LookUp(6, 2), sp.TableDrafter(s.table)
        ),
        "staged": lambda: sp.Staged(
            s.draft, sp.TableDrafter(s.table), sp.lossless, sp.Fixed(2)
        ),
        "best-first tree": lambda: trees.OptTree(s.draft, 6, 0.3, width=4),
        "early exit": lambda: own.ExitDrafter(s.leave.exit),
        "EAGLE": lambda: own.HeadDrafter(s.heads["eagle"]),
        BLOCKS[1]: lambda: own.HeadDrafter(s.heads["eagle"]),
        "recurrent": lambda: own.HeadDrafter(s.heads["recurrent"]),
    }


def targets(s: Setting) -> dict[str, sp.Target]:
    """The targets of drafters that want more of a pass than its logits."""
    heads = dict.fromkeys(("EAGLE", BLOCKS[1], "recurrent"), s.hearing)
    return {"early exit": s.leave} | heads


def extra(s: Setting) -> dict[str, dict[str, int]]:
    """Parameters and bytes that a method adds to the target."""
    small = s.models["draft"].parameters_total
    model = {"parameters": small, "bytes": 4 * small}
    table = {"parameters": 0, "bytes": s.table.bytes}
    return {
        "draft": model,
        UNSURE: model,
        BLOCKS[0]: model,
        "n-gram": table,
        "look-up, else draft": model,
        "look-up, else n-gram": table,
        "staged": {"parameters": small, "bytes": 4 * small + s.table.bytes},
        "best-first tree": model,
        **{
            name: {
                "parameters": head.parameters_total,
                "bytes": 4 * head.parameters_total,
            }
            for name, head in (
                ("EAGLE", s.heads["eagle"]),
                (BLOCKS[1], s.heads["eagle"]),
                ("recurrent", s.heads["recurrent"]),
            )
        },
    }


def methods(s: Setting, gammas: dict[str, int], warp: sp.Warp) -> list[sp.Method]:
    """Every drafter at its length, as rows of a comparison."""
    more, on = extra(s), targets(s)
    # A greedy draft is fixed: there the block rule is the plain comparison.
    drawn = warp.temperature > 0
    return [
        sp.Method(
            name,
            make,
            partial(sp.Confidence, 0.4, gammas[name], False)
            if name == UNSURE
            else partial(sp.Fixed, gammas[name]),
            verifier=sp.block_rule if name in BLOCKS else sp.lossless,
            target=on.get(name),
            **more.get(name, {}),
        )
        for name, make in offers(s).items()
        if drawn or name not in BLOCKS
    ]


def tuned(
    s: Setting, work: str, warp: sp.Warp, clock: Callable
) -> dict[str, tuple[int, float, float]]:
    """Every method's best draft length on the tuning prompts, and its medians there.

    The second median is over the prompts whose text does not loop, or the first again.
    """
    rows: dict[str, dict[int, tuple[float, float]]] = {}
    for gamma in s.gammas:
        some = methods(s, dict.fromkeys(offers(s), gamma), warp)
        how = {"warp": warp, "seed": 1000, "clock": clock}
        runs = sp.compared(some, s.target, s.asked[work, "tune"], s.new, **how)
        calm = without_loops(runs)
        both = [sp.overview(part) for part in (runs, runs if calm.empty else calm)]
        for method in some:
            found = tuple(float(part.loc[method.name, "ratio"]) for part in both)
            rows.setdefault(method.name, {})[gamma] = found
    best = {name: max(found, key=lambda g: found[g][0]) for name, found in rows.items()}
    return {name: (gamma, *rows[name][gamma]) for name, gamma in best.items()}


def methods_table(s: Setting, options: Options, clock: Callable) -> pd.DataFrame:
    """Every method on both workloads, sampled and greedy, a row each."""
    return pd.concat(
        [
            table
            for work in ("free", "copy")
            for temperature in (HOT, COLD)
            for table in workload(s, work, sp.Warp(temperature), options, clock)
        ],
        ignore_index=True,
    )


def workload(
    s: Setting, work: str, warp: sp.Warp, options: Options, clock: Callable
) -> list[pd.DataFrame]:
    """Every method at its best length: on all prompts, greedy also without loops."""
    T = warp.temperature
    options.say(f"{work}, T = {T:g}: lengths")
    chosen = tuned(s, work, warp, clock)
    gammas = {name: gamma for name, (gamma, *_) in chosen.items()}
    some = methods(s, gammas, warp)
    options.say(f"{work}, T = {T:g}: {gammas}")
    how = {"warp": warp, "clock": clock}
    runs = sp.compared(some, s.target, s.asked[work, "judge"], s.new, **how)
    parts = {work: runs}
    if T == COLD:
        same_texts(s, work, runs)
        parts[f"{work}, {CALM}"] = without_loops(runs)
    found = []
    for name, part in parts.items():
        if part.empty:
            continue
        table = sp.overview(part, some).reset_index()
        own = [chosen.get(method, (0, 1.0, 1.0)) for method in table["method"]]
        table.insert(0, "workload", name)
        table.insert(1, "T", T)
        table.insert(3, "gamma", [gamma for gamma, *_ in own])
        table.insert(4, "tuned", [row[1 if name == work else 2] for row in own])
        table.insert(5, "prompts", part["prompt"].nunique())
        found.append(table)
    return found


def without_loops(runs: pd.DataFrame) -> pd.DataFrame:
    """The prompts whose plain text has mostly different trigrams."""
    plain = runs[runs["method"] == "plain"]
    calm = plain.loc[plain["distinct"] >= DISTINCT, "prompt"]
    return runs[runs["prompt"].isin(calm)]


def same_texts(s: Setting, work: str, runs: pd.DataFrame) -> None:
    """Greedy texts must be plain decoding's, or part where the logits are tied.

    Raises BenchmarkError for a difference with a margin that rounding cannot explain.
    """
    for number, part in runs.groupby("prompt"):
        texts = part.set_index("method")["text"]
        prompt = s.asked[work, "judge"][number]
        for name, text in texts.items():
            found = sp.first_difference(s.target, prompt, texts["plain"], text)
            if found and found["margin"] > 1e-4:
                raise BenchmarkError(
                    f"{name} wrote another greedy text at prompt {number}, token "
                    f"{found['place']}, where the margin is {found['margin']:.2g}."
                )


def best_table(table: pd.DataFrame) -> pd.DataFrame:
    """The method of each workload and temperature that was quickest in tuning."""
    some = table[table["method"] != "plain"]
    rows = some.loc[some.groupby(["workload", "T"])["tuned"].idxmax()]
    columns = ["workload", "T", "method", "ratio", "low", "high", "distinct", "tau"]
    return rows[columns].reset_index(drop=True)


# -- transformers ---------------------------------------------------------------------


def theirs(model: Any, assistant: Any, gamma: int, kind: str) -> Callable:
    """A call that continues a prompt greedily with transformers' own generation."""
    more: dict[str, Any] = {}
    if kind == "draft":
        config = assistant.generation_config
        config.num_assistant_tokens = gamma
        config.num_assistant_tokens_schedule = "constant"
        config.assistant_confidence_threshold = 0.0
        more = {"assistant_model": assistant}
    elif kind == "look-up":
        more = {"prompt_lookup_num_tokens": gamma, "max_matching_ngram_size": 6}

    def call(prompt: Sequence[int], new: int) -> list[int]:
        out = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=new,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            **more,
        )
        return out[0, len(prompt) :].tolist()

    return call


def ours(s: Setting, target: Any, make: Callable, gamma: int) -> Callable:
    """A call that continues a prompt greedily with our loop."""
    cold = sp.Warp(COLD)

    def call(prompt: Sequence[int], new: int) -> list[int]:
        parts = (target, make(), sp.lossless, sp.Fixed(gamma), prompt, new)
        return sp.decode(*parts, warp=cold)[0]

    return call


def raced(
    calls: dict[Any, Callable], prompts: Sequence, new: int, clock: Callable
) -> dict[Any, np.ndarray]:
    """Seconds of whole calls, prompt included, in turns: one number a prompt."""
    spent: dict[Any, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for number, prompt in enumerate(prompts):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            begin = clock()
            calls[name](prompt, new)
            spent[name].append(clock() - begin)
    return {name: np.array(row) for name, row in spent.items()}


def peers_table(s: Setting, options: Options, clock: Callable) -> pd.DataFrame:
    """Ours against transformers' generation, same weights, each at its best length.

    `forward` says whose forward pass ours runs on: our decoder, or their model.
    """
    columns = ["method", "forward", "gamma", "their gamma", "ratio", "low", "high"]
    if not installed("transformers"):
        return pd.DataFrame(columns=columns)
    model = language.as_llama(s.models["target"])
    small = language.as_llama(s.models["draft"])
    hub, hub_draft = sp.HubTarget(model), sp.HubTarget(small)
    makers = {
        ("plain", "ours"): (s.target, sp.NoDraft),
        ("draft", "ours"): (s.target, lambda: sp.ModelDrafter(s.draft)),
        ("look-up", "ours"): (s.target, lambda: sp.LookUp(6, 2)),
        ("draft", "theirs"): (hub, lambda: sp.ModelDrafter(hub_draft)),
        ("look-up", "theirs"): (hub, lambda: sp.LookUp(6, 2)),
    }
    rows = []
    for (kind, forward), (target, make) in makers.items():
        options.say(f"transformers: {kind}, {forward} forward")
        here, there = s.gammas, s.gammas if options.quick else THEIRS
        if kind == "plain":
            here = there = (0,)
        sides = {
            "ours": {g: ours(s, target, make, g) for g in here},
            "theirs": {g: partial(_theirs, model, small, g, kind) for g in there},
        }
        best = {}
        for side, calls in sides.items():
            spent = raced(calls, s.asked["free", "tune"], s.new, clock)
            best[side] = min(spent, key=lambda g: np.median(spent[g]))
        both = {side: sides[side][gamma] for side, gamma in best.items()}
        spent = raced(both, s.asked["free", "judge"], s.new, clock)
        low, middle, high = np.quantile(
            spent["theirs"] / spent["ours"], [0.1, 0.5, 0.9]
        )
        name = kind if forward == "ours" else f"{kind}, their forward"
        rows.append([name, forward, best["ours"], best["theirs"], middle, low, high])
    return pd.DataFrame(rows, columns=columns)


def _theirs(model: Any, small: Any, gamma: int, kind: str, prompt, new) -> list[int]:
    # Lengths stand in the assistant's own configuration: set anew for every call.
    return theirs(model, small, gamma, kind)(prompt, new)


# -- what changes with scale ----------------------------------------------------------


def costs_table(options: Options) -> pd.DataFrame:
    """c(k) of random weights at every size, a row a size and width."""
    rows = []
    names = list(SIZES)[:1] if options.quick else list(SIZES)
    for name in names:
        options.say(f"a pass, {name}")
        model = language.Transformer(SIZES[name]).requires_grad_(False)
        target = sp.NeuralTarget(language.Decoder(model))
        repeats = 3 if options.quick else (30 if SIZES[name].d < 700 else 8)
        found = sp.costs(target, 256, WIDTHS, repeats)
        for k, seconds in found.items():
            about = [name, model.parameters_total, k, 1e3 * seconds]
            rows.append([*about, seconds / found[1]])
    return pd.DataFrame(rows, columns=["size", "parameters", "k", "ms", "c"])


def predicted_table(costs: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """The walltime model at every size, for the acceptance of the draft measured here.

    The draft keeps its share of the target's cost.
    """
    small = costs[costs["size"] == next(iter(SIZES))].iloc[0]["ms"]
    drafted = table[(table["method"] == "draft") & (table["workload"] == "free")]
    rows = []
    base = costs[(costs["size"] == "6.5 M") & (costs["k"] == 1)]["ms"]
    share = float(small / base.iloc[0]) if len(base) else 0.15
    for name, part in costs.groupby("size", sort=False):
        cost = sp.curve(part["k"].tolist(), part["c"].tolist())
        for _, row in drafted.iterrows():
            a = float(row["acceptance"])
            gamma = sp.best_gamma(a, share, cost, 12)
            gain = sp.speedup(a, gamma, share, cost)
            rows.append([name, row["T"], a, share, gamma, gain])
    columns = ["size", "T", "acceptance", "c_d", "gamma", "S"]
    return pd.DataFrame(rows, columns=columns)


def run(options: Options) -> dict[str, pd.DataFrame]:
    """Measure everything: "methods", "best", "peers", "costs" and "predicted".

    options: threads, quick (tiny random models). Raises BenchmarkError where a greedy
    text differs.
    """
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.threads == 1 else time.perf_counter
    setting = Setting(options.quick)
    table = methods_table(setting, options, clock)
    costs = costs_table(options)
    return {
        "methods": table,
        "best": best_table(table),
        "peers": peers_table(setting, options, clock),
        "costs": costs,
        "predicted": predicted_table(costs, table),
    }
