"""Joint recall, and the sparse attention that an SSM needs to solve it (HAX).

Joint recall asks for the value of a key *in a context*: a table of contexts x keys
fresh values, more than any fixed state can hold once the table is large. HAX adds to an
SSM an attention whose pattern depends on the content: keys that fall into the query's
hash bucket (LSH) and keys that score high for everybody (KS).

Source: 2507.00449. Read: the abstract; the authors' model code (patterns, budgets,
scorer, sum with the SSM); a third party's summary (the formulas, the error bound
1 - |U| / |V|^n). Ours: the token layout of the task, the counting proofs, the solver
built by hand. That code centres queries and keys over the whole sequence before it
hashes, which lets the future choose buckets; here nothing is centred. Every pattern is
a mask on dense attention: pairs are counted, time is not saved.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.kit.checks import count, need
from lib.scan import linear_scan

# -- the task -----------------------------------------------------------------------


class Recall(NamedTuple):
    """A batch of joint recall: tokens, targets (batch, L), and the sizes behind them.

    targets is -1 except at a query's key, where it is the value's token. Tokens:
    contexts first, then keys, then values.
    """

    tokens: Tensor
    targets: Tensor
    contexts: int
    keys: int
    values: int


def joint_recall(
    rng: np.random.Generator,
    batch: int,
    contexts: int = 4,
    keys: int = 8,
    values: int = 16,
    queries: int | None = None,
) -> Recall:
    """Tables written out block by block, then queries (context, key) for their values.

    rng: numpy's; batch; contexts, keys, values: sizes, all contexts use the same keys;
    queries: different pairs asked, all by default. A block is a context, then its keys,
    each followed by its value, in random order; the queries follow as context, key.
    contexts = 1 is multi-query associative recall. Length: contexts (1 + 2 keys) +
    2 queries. Raises ValueError for sizes. Source: 2507.00449 (contexts x keys entries,
    many queries); the layout is ours.
    """
    sizes = {"batch": batch, "contexts": contexts, "keys": keys, "values": values}
    for name, size in sizes.items():
        count(name, size)
    entries = contexts * keys
    queries = entries if queries is None else queries
    count("queries", queries)
    need(queries <= entries, f"queries is {queries}; there are {entries} pairs.")
    rows = [_one(rng, contexts, keys, values, queries) for _ in range(batch)]
    tokens, targets = (torch.as_tensor(np.stack(part)) for part in zip(*rows))
    return Recall(tokens, targets, contexts, keys, values)


def _one(rng, contexts: int, keys: int, values: int, queries: int) -> tuple:
    table = rng.integers(values, size=(contexts, keys)) + contexts + keys
    tokens = []
    for c in rng.permutation(contexts):
        tokens.append(c)
        for k in rng.permutation(keys):
            tokens += [contexts + k, table[c, k]]
    targets = [-1] * len(tokens)
    for pair in rng.permutation(contexts * keys)[:queries]:
        c, k = divmod(int(pair), keys)
        tokens += [c, contexts + k]
        targets += [-1, table[c, k]]
    return np.array(tokens), np.array(targets)


def recall_error_bound(bits: float, entries: int, values: int) -> float:
    """The least chance that some entry of a random table is recalled wrongly.

    bits: of the state that is carried from the table to the queries (an SSM: numbers
    times bits a number); entries: contexts x keys; values: alphabet. Returns
    max(0, 1 - 2^bits / values^entries). Each state gives one list of answers to all
    queries, so at most 2^bits of the values^entries equally likely tables are answered
    without an error. Raises ValueError for sizes. Source: derived here; 2507.00449's
    bound as a third party's summary gives it.
    """
    _table(bits, entries, values)
    excess = min(0.0, bits - entries * math.log2(values))
    return -math.expm1(excess * math.log(2))


def entry_error_bound(bits: float, entries: int, values: int) -> float:
    """The least average error of one query, whatever the model (Fano's inequality).

    bits, entries, values: as `recall_error_bound`. Returns the smallest e in
    [0, 1 - 1/values] with h(e) + e log2(values - 1) >= log2(values) - bits / entries,
    h the binary entropy: 0 only if the state grows in proportion to the table. With a
    sequence as long as the table, a state updated densely then costs quadratic time.
    Raises ValueError for sizes. Source: derived here.
    """
    _table(bits, entries, values)
    missing = math.log2(values) - bits / entries
    low, high = 0.0, 1 - 1 / values

    def spread(e: float) -> float:
        h = -sum(p * math.log2(p) for p in (e, 1 - e) if p > 0)
        return h + e * math.log2(max(values - 1, 1))

    if missing <= 0:
        return 0.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if spread(middle) < missing else (low, middle)
    return low


def _table(bits: float, entries: int, values: int) -> None:
    need(bits >= 0, f"bits is {bits}; a state holds 0 bits or more.")
    count("entries", entries)
    count("values", values)


# -- patterns: masks (batch, L, L), True where query i may see key j <= i -------------


def causal(L: int) -> Tensor:
    """Every earlier key and the query's own: (L, L). Raises ValueError for L < 1."""
    count("L", L)
    return torch.ones(L, L, dtype=torch.bool).tril()


def window_pattern(L: int, budget: int) -> Tensor:
    """The last `budget` keys, whatever they are: (L, L), context-independent.

    Raises ValueError for sizes. Source: 2507.00449's rival (authors' code).
    """
    count("budget", budget)
    return causal(L).triu(1 - budget)


def dilated_pattern(L: int, stride: int) -> Tensor:
    """Every stride-th key of the sequence: (L, L), context-independent.

    Raises ValueError for sizes. Source: 2507.00449's rival (authors' code).
    """
    count("stride", stride)
    return causal(L) & (torch.arange(L) % stride == stride - 1)


def buckets(x: Tensor, planes: Tensor) -> Tensor:
    """The hash of a vector: the signs of its projections, read as a binary number.

    x: (batch, L, d); planes: (d, bits), random normals. Returns whole numbers
    (batch, L). Two vectors at an angle theta share a bucket with probability
    (1 - theta / pi)^bits. Raises ValueError for shapes. Source: 2507.00449 (authors'
    code); the probability is the textbook's of sign projections.
    """
    need(
        x.ndim == 3 and planes.ndim == 2 and x.shape[2] == len(planes),
        f"x is {tuple(x.shape)}, planes {tuple(planes.shape)}; give (batch, L, d), "
        "(d, bits).",
    )
    need(planes.shape[1] < 63, f"{planes.shape[1]} bits do not fit; give 62 at most.")
    powers = 2 ** torch.arange(planes.shape[1], device=x.device)
    return ((x @ planes > 0) * powers).sum(-1)


def lsh_pattern(q: Tensor, k: Tensor, planes: Tensor, budget: int) -> Tensor:
    """The latest `budget` keys in the query's bucket: (batch, L, L).

    q, k: (batch, L, d); planes: see `buckets`. A row is empty where no key shares the
    bucket. Raises ValueError for shapes. Source: 2507.00449 (authors' code).
    """
    count("budget", budget)
    mine, theirs = buckets(q, planes), buckets(k, planes)
    same = (mine[:, :, None] == theirs[:, None]) & causal(q.shape[1]).to(q.device)
    newer = same.flip(-1).cumsum(-1).flip(-1)  # how many from here to the newest
    return same & (newer <= budget)


def selection_pattern(scores: Tensor, budget: int) -> Tensor:
    """The keys among the `budget` best scores so far, one list for every query.

    scores: (batch, L), of keys; ties go to earlier keys. Returns (batch, L, L): row i
    holds min(i + 1, budget) keys. Raises ValueError for shapes. Source: 2507.00449
    (authors' code: a cumulative top-k).
    """
    need(scores.ndim == 2, f"scores is {tuple(scores.shape)}; give (batch, L).")
    count("budget", budget)
    L = scores.shape[1]
    seen = causal(L).to(scores.device)
    early = torch.ones_like(seen).triu(1)  # [m, j]: key m stands before key j
    mine, other = scores[:, None, :], scores[:, :, None]
    ahead = (other > mine) | ((other == mine) & early)
    above = seen.to(scores.dtype) @ ahead.to(scores.dtype)  # keys m <= i ahead of j
    return seen & (above < budget)


class KeyScorer(nn.Module):
    """How much a key matters to everybody: an MLP of it and of the queries so far.

    width: of queries and keys; hidden: of the MLP. Inputs are detached: in the paper a
    ranking loss against attention weights trains it, which is not built here. Raises
    ValueError for sizes. Source: 2507.00449 (authors' code); a unit-length sum is ours.
    """

    def __init__(self, width: int, hidden: int = 32):
        super().__init__()
        count("width", width)
        count("hidden", hidden)
        layers = (nn.Linear(2 * width, hidden), nn.ReLU(), nn.Linear(hidden, hidden))
        self.mlp = nn.Sequential(*layers, nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, q: Tensor, k: Tensor) -> Tensor:
        """q, k: (batch, L, width) to scores (batch, L), causal."""
        asked = F.normalize(q.detach().cumsum(1), dim=-1)
        return self.mlp(torch.cat([k.detach(), asked], dim=-1))[..., 0]


# -- attention ----------------------------------------------------------------------


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Softmax attention over the pairs of a mask; a query without any gets 0.

    q, k: (batch, L, d); v: (batch, L, m); mask: (L, L) or (batch, L, L), bool; scale:
    of the products. Returns (batch, L, m). With the causal mask this is full attention.
    Raises ValueError for shapes or a mask that sees the future. Source: the definition;
    0 for empty rows is ours (a large negative number instead attends to the future).
    """
    need(
        q.shape == k.shape and v.shape[:2] == q.shape[:2] and q.ndim == v.ndim == 3,
        f"q is {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}; give "
        "(batch, L, d) twice and (batch, L, m).",
    )
    need(
        mask.dtype == torch.bool and mask.shape[-2:] == (q.shape[1],) * 2,
        f"mask is {mask.dtype} {tuple(mask.shape)}; give bool (..., L, L).",
    )
    need(not mask.triu(1).any(), "The mask sees the future; cut it with causal(L).")
    logits = (scale * q @ k.transpose(1, 2)).masked_fill(~mask, -torch.inf)
    logits = logits.masked_fill(~mask.any(-1, keepdim=True), 0)
    return (torch.softmax(logits, dim=-1) * mask) @ v


def hax(
    ssm: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, gain: Tensor
) -> Tensor:
    """An SSM's output plus its sparse attention: y = ssm + gain attention(q, k, v).

    ssm, v: (batch, L, m); q, k: (batch, L, d), scaled by 1/sqrt(d); mask: the union
    lsh_pattern | selection_pattern; gain: (m,), learned. Returns (batch, L, m). Raises
    ValueError for shapes. Source: 2507.00449 (authors' code).
    """
    need(
        ssm.shape == v.shape and gain.shape == v.shape[-1:],
        f"ssm is {tuple(ssm.shape)}, v {tuple(v.shape)}, gain {tuple(gain.shape)}; "
        "give (batch, L, m) twice and (m,).",
    )
    return ssm + gain * attention(q, k, v, mask, q.shape[-1] ** -0.5)


def pairs(mask: Tensor) -> Tensor:
    """How many keys each query sees: mask (..., L, L) to (..., L)."""
    return mask.sum(-1)


# -- a solver by hand: one scan, one shift, one attention ---------------------------


def carry(tokens: Tensor, codes: Tensor, first: int, last: int) -> Tensor:
    """The code of the latest token in a range: a selective scan as a register.

    tokens: (batch, L); codes: (vocabulary, d); first, last: the range, last excluded.
    The decay is 0 where such a token stands and 1 elsewhere (delta large or 0): a
    d-number state for any length. Returns (batch, L, d), 0 before the first. Source:
    derived here, the first layer of 2507.00449's two-layer solution.
    """
    hit = ((tokens >= first) & (tokens < last))[..., None]
    decay = (~hit).to(codes.dtype).expand(*hit.shape[:2], codes.shape[1])
    return linear_scan(decay, hit * codes[tokens])


def solver_features(case: Recall, codes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of the attention that solves joint recall.

    case: from `joint_recall`; codes: (vocabulary, d) of +-1, drawn at random. Two
    registers carry the latest context and key; a gate multiplies them, so different
    pairs are nearly orthogonal. A value stands one step after its key and so carries
    its own pair; elsewhere the key is the pair's opposite, the least alike. Returns q,
    k (batch, L, d) and v (batch, L, vocabulary), one-hot at values, else 0. Source:
    derived here.
    """
    tokens, d = case.tokens, codes.shape[1]
    middle = case.contexts + case.keys
    context = carry(tokens, codes, 0, case.contexts)
    key = carry(tokens, codes, case.contexts, middle)
    pair = context * key / math.sqrt(d)
    value = (tokens >= middle)[..., None]
    words = F.one_hot(tokens, len(codes)).to(codes) * value
    return pair, torch.where(value, pair, -pair), words


def solve(case: Recall, codes: Tensor, mask: Tensor, scale: float = 50.0) -> float:
    """The share of queries answered by attention over a mask, by the solver's features.

    case, codes: as `solver_features`; mask: (L, L) or (batch, L, L); scale: inverse
    temperature. Returns a number in [0, 1]: 1 with the causal mask, 1 with LSH while
    the budget holds the bucket, about the covered share for fixed patterns.
    Source: derived here; 2507.00449 proves that hashing attention suffices (abstract).
    """
    q, k, v = solver_features(case, codes)
    answers = attention(q, k, v, mask, scale).argmax(-1)
    asked = case.targets >= 0
    seen = (answers == case.targets)[asked]
    return float(seen.double().mean())
