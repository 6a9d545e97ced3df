"""n-gram models: exact laws without training, and a table that drafts.

A run of symbols is packed into one 64-bit number, the last symbol lowest, so that
counting is sorting, and all continuations of a context stand side by side.
Sources: Witten and Bell 1991 (method C); 2311.08252 (drafting from a datastore).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lib.kit.checks import count, need

BITS = 62  # of a packed run


def packed(tokens: np.ndarray, width: int, bits: int) -> np.ndarray:
    """Every run of `width` symbols as one number, the last symbol lowest.

    tokens: (n,) below 2**bits. Returns (n - width + 1,) int64.
    """
    tokens = np.asarray(tokens, np.int64)
    code = np.zeros(max(len(tokens) - width + 1, 0), np.int64)
    for k in range(width):
        code = (code << bits) | tokens[k : len(code) + k]
    return code


def counted(tokens: np.ndarray, order: int, bits: int) -> list[tuple]:
    """The different runs of 1 .. order + 1 symbols, sorted, with their numbers.

    Returns order + 1 pairs (runs (m,) int64, counts (m,) int64). The longest runs are
    sorted once: their beginnings are then sorted too, and only the few shorter runs at
    the text's end are put in.
    """
    full = np.sort(packed(tokens, order + 1, bits))
    found = []
    for k in range(order + 1):
        codes = full >> (bits * (order - k))
        last = np.sort(packed(tokens[len(full) :], k + 1, bits))
        codes = np.insert(codes, np.searchsorted(codes, last), last)
        first = np.flatnonzero(np.diff(codes, prepend=-1))
        found.append((codes[first], np.diff(first, append=len(codes))))
    return found


def counted_ahead(tokens: np.ndarray, order: int, bits: int, ahead: int) -> list[tuple]:
    """Contexts of 1 .. order symbols with the one `ahead` places after, counted.

    Returns order pairs as of `counted`; what stands between is not looked at.
    """
    if ahead == 1:
        return counted(tokens, order, bits)[1:]
    found = []
    for k in range(1, order + 1):
        after = tokens[k - 1 + ahead :]
        codes = (packed(tokens, k, bits)[: len(after)] << bits) | after
        found.append(np.unique(codes, return_counts=True))
    return found


def _checked(tokens: Sequence[int] | np.ndarray, V: int, order: int) -> np.ndarray:
    count("V", V, 2)
    count("order", order, 0)
    bits = (V - 1).bit_length()
    need(
        (order + 1) * bits <= BITS,
        f"order {order} over {V} symbols needs {(order + 1) * bits} bits a run; "
        f"{BITS} fit: give an order of at most {BITS // bits - 1}.",
    )
    tokens = np.asarray(tokens, np.int64)
    need(
        len(tokens) > order,
        f"The text has {len(tokens)} tokens; give more than the order, {order}.",
    )
    low, high = int(tokens.min()), int(tokens.max())
    need(low >= 0 and high < V, f"The tokens span {low} to {high}; V is {V}.")
    return tokens


class Ngram:
    """An interpolated n-gram model with exact laws.

    p(c | h) = (n(hc) + t(h) p(c | h')) / (n(h) + t(h)): n counts in the text, t(h) is
    the number of different symbols seen after h, h' is h without its oldest symbol; at
    the bottom stands 1 / V. tokens: (n,) to count in; V: symbols; order: symbols of
    context. Raises ValueError. Source: Witten and Bell 1991 (method C).
    """

    def __init__(self, tokens: Sequence[int], V: int, order: int = 3) -> None:
        tokens = _checked(tokens, V, order)
        self.V, self.order, self.bits = V, order, (V - 1).bit_length()
        self.tables = counted(tokens, order, self.bits)

    @property
    def entries(self) -> int:
        """Different runs that it holds."""
        return sum(len(runs) for runs, _ in self.tables)

    def law(self, context: Sequence[int]) -> np.ndarray:
        """The law of the next symbol: (V,) float64, summing to 1.

        context: any length; the last `order` symbols count. Raises ValueError for
        symbols.
        """
        used = [int(c) for c in context[max(len(context) - self.order, 0) :]]
        need(
            all(0 <= c < self.V for c in used),
            f"The context holds a symbol outside 0 to {self.V - 1}.",
        )
        p, code = np.full(self.V, 1 / self.V), 0
        for k, (runs, counts) in enumerate(self.tables[: len(used) + 1]):
            if k:
                code |= used[-k] << (self.bits * (k - 1))
            begin, end = np.searchsorted(
                runs, [code << self.bits, (code + 1) << self.bits]
            )
            if begin == end:
                break  # a longer context was not seen either
            n, t = counts[begin:end].sum(), end - begin
            p *= t / (n + t)
            p[runs[begin:end] & ((1 << self.bits) - 1)] += counts[begin:end] / (n + t)
        return p

    def laws(self, context: Sequence[int], nodes: Sequence[int]) -> np.ndarray:
        """The laws after a context and after each node of a chain: (nodes + 1, V)."""
        text = [*context[max(len(context) - self.order, 0) :], *nodes]
        first = len(text) - len(nodes)
        return np.stack([self.law(text[:k]) for k in range(first, len(text) + 1)])

    def loss(self, tokens: Sequence[int] | np.ndarray) -> float:
        """The mean loss a symbol on another text, in nats.

        tokens: (n,); the first `order` are context only. Raises ValueError.
        """
        tokens = _checked(tokens, self.V, self.order)
        p = np.full(len(tokens) - self.order, 1 / self.V)
        for k, (runs, counts) in enumerate(self.tables):
            first = np.flatnonzero(np.diff(runs >> self.bits, prepend=-1))
            above, n = runs[first] >> self.bits, np.add.reduceat(counts, first)
            t = np.diff(first, append=len(runs))
            asked = packed(tokens[self.order - k :], k + 1, self.bits)
            hits, at = _found(runs, counts, asked), asked >> self.bits
            n_h, t_h = _found(above, n, at), _found(above, t, at)
            p = np.where(n_h > 0, (hits + t_h * p) / np.maximum(n_h + t_h, 1), p)
        return float(-np.log(p).mean())


def _found(keys: np.ndarray, values: np.ndarray, asked: np.ndarray) -> np.ndarray:
    place = np.minimum(np.searchsorted(keys, asked), len(keys) - 1)
    return np.where(keys[place] == asked, values[place], 0)


class Table:
    """The most frequent continuation of every context of 1 to `order` symbols.

    tokens: (n,) to count in; V: symbols; order: longest context; least: how often the
    continuation must have been seen; ahead: how many places after the context it
    stands, 1 for the next symbol. Ties go to the lowest symbol. Raises ValueError.
    Source: 2311.08252; specification, section 6.8.
    """

    def __init__(
        self,
        tokens: Sequence[int],
        V: int,
        order: int = 5,
        least: int = 2,
        ahead: int = 1,
    ) -> None:
        tokens = _checked(tokens, V, order)
        count("least", least)
        count("ahead", ahead)
        self.V, self.order, self.bits = V, order, (V - 1).bit_length()
        low = (1 << self.bits) - 1
        self.levels = []  # of 1, 2, ... symbols: contexts, next, confidence
        for runs, counts in counted_ahead(tokens, order, self.bits, ahead):
            context = runs >> self.bits
            first = np.flatnonzero(np.diff(context, prepend=-1))
            total = np.add.reduceat(counts, first)
            # The best of each context: by count, then by the lower symbol.
            order_of = np.lexsort((runs, -counts, context))[first]
            keep = counts[order_of] >= least
            best, seen = order_of[keep], counts[order_of][keep]
            nexts = (runs[best] & low).astype(np.int32)
            confidence = ((seen - 0.5) / total[keep]).astype(np.float32)
            self.levels.append((context[best], nexts, confidence))

    @property
    def entries(self) -> int:
        """Contexts that it holds."""
        return sum(len(contexts) for contexts, *_ in self.levels)

    @property
    def bytes(self) -> int:
        """What it takes in memory."""
        return sum(part.nbytes for level in self.levels for part in level)

    def next(self, context: Sequence[int]) -> tuple[int, float] | None:
        """The continuation of the longest context that was seen, with its confidence.

        context: symbols before. Returns (symbol, (count - 0.5) / total), or None.
        """
        for k in range(min(self.order, len(context)), 0, -1):
            contexts, nexts, confidence = self.levels[k - 1]
            code = 0
            for symbol in context[len(context) - k :]:
                code = (code << self.bits) | int(symbol)
            at = contexts.searchsorted(code)
            if at < len(contexts) and contexts[at] == code:
                return int(nexts[at]), float(confidence[at])
        return None

    def draft(
        self, context: Sequence[int], most: int, threshold: float = 0.0
    ) -> tuple[list[int], list[float]]:
        """A chain of likely symbols: drafting stops when their product is too small.

        context: symbols before; most: symbols drafted; threshold: of the product of
        confidences. Returns symbols and confidences, perhaps none. Raises ValueError.
        """
        count("most", most, 0)
        text, drafted, sure = list(context[-self.order :]), [], []
        product = 1.0
        while len(drafted) < most and (found := self.next(text)) is not None:
            product *= found[1]
            if product < threshold:
                break
            drafted.append(found[0])
            sure.append(found[1])
            text = [*text[1 - self.order :], found[0]] if self.order > 1 else [found[0]]
        return drafted, sure
