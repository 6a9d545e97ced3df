"""The keys and values of what was read, in memory that is allocated once.

The contract: after a start and every commit, `rows` is one less than the number of
tokens, because the last committed token has no row yet. A pass writes behind the
committed rows and leaves `rows` alone; a commit keeps what was accepted. Keys are
turned by their position before they are stored, so a gathered row stays right.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from lib.kit.checks import count, need


class Cache:
    """Keys and values of all layers for a batch of sequences, each with its own rows.

    layers, batch, heads, width: of k and v (layers, batch, heads, room, width); room:
    rows at first, doubled when they are full; most: rows it may ever hold; dtype,
    device. rows: list of the committed rows a sequence. Raises ValueError for sizes.
    """

    def __init__(
        self,
        layers: int,
        batch: int,
        heads: int,
        width: int,
        *,
        room: int = 256,
        most: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        for name, size in {"layers": layers, "batch": batch, "room": room}.items():
            count(name, size)
        self.most = most
        shape = (layers, batch, heads, min(room, most or room), width)
        self._hold(*(torch.zeros(shape, dtype=dtype, device=device) for _ in "kv"))
        self.rows = [0] * batch

    def _hold(self, k: Tensor, v: Tensor) -> None:
        self.k, self.v = k, v
        self.layers = list(zip(k.unbind(0), v.unbind(0)))  # views: no index a pass

    @property
    def batch(self) -> int:
        """How many sequences it remembers."""
        return self.k.shape[1]

    @property
    def room(self) -> int:
        """Rows that are allocated for each sequence."""
        return self.k.shape[3]

    @property
    def bytes(self) -> int:
        """What it takes in memory, rows that are not used yet included."""
        return 2 * self.k.numel() * self.k.element_size()

    def ensure(self, more: int) -> None:
        """Have room for `more` rows behind the committed ones, doubling where needed.

        Raises ValueError beyond `most`, the context that the model was made for.
        """
        wanted = max(self.rows) + more
        if wanted <= self.room:
            return
        need(
            self.most is None or wanted <= self.most,
            f"{max(self.rows)} tokens and {more} more are longer than the context of "
            f"{self.most}; draft less, or stop here.",
        )
        room = max(wanted, 2 * self.room)
        room = room if self.most is None else min(room, self.most)
        self._hold(*(self._longer(old, room) for old in (self.k, self.v)))

    @staticmethod
    def _longer(old: Tensor, room: int) -> Tensor:
        new = old.new_zeros(*old.shape[:3], room, old.shape[4])
        new[:, :, :, : old.shape[3]] = old
        return new

    # -- after verification -----------------------------------------------------------

    def commit(self, path: Sequence[int], sequence: int = 0) -> None:
        """Keep the last committed token's row and those of the accepted nodes.

        path: node numbers from root to leaf, perhaps empty, of the last pass; sequence:
        of the batch. A chain only counts; a tree's rows are gathered in all layers.
        Raises ValueError where the pass has not written so many rows.
        """
        path, first = list(path), self.rows[sequence] + 1
        need(
            first + max(path, default=-1) < self.room
            and all(a < b for a, b in itertools.pairwise(path)),
            f"The path {path} does not lead from the root to nodes of the last pass.",
        )
        if path and path[-1] != len(path) - 1:
            source = torch.tensor(path, device=self.k.device) + first
            with torch.inference_mode():
                for part in (self.k[:, sequence], self.v[:, sequence]):
                    rows = part.index_select(2, source)
                    part[:, :, first : first + len(path)] = rows
        self.rows[sequence] = first + len(path)

    def crop(self, rows: int, sequence: int = 0) -> None:
        """Forget what lies behind the first `rows` rows. Raises ValueError for more."""
        need(
            0 <= rows <= self.rows[sequence],
            f"{rows} rows were asked for; the cache has {self.rows[sequence]}.",
        )
        self.rows[sequence] = rows

    def take(self, sequences: Sequence[int]) -> None:
        """Keep some sequences of the batch, in this order: finished ones go.

        Raises IndexError for one that is missing.
        """
        index = torch.tensor(list(sequences), device=self.k.device)
        with torch.inference_mode():
            self._hold(self.k.index_select(1, index), self.v.index_select(1, index))
        self.rows = [self.rows[sequence] for sequence in sequences]

    def held(self, sequence: int = 0) -> tuple[Tensor, Tensor]:
        """The committed keys and values of a sequence, (layers, heads, rows, width)."""
        rows = self.rows[sequence]
        return self.k[:, sequence, :, :rows], self.v[:, sequence, :, :rows]
