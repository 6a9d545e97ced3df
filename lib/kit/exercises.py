"""Exercises that check the reader's answer, and say nothing until there is one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np


def exercise(
    name: str, answer: Any, truth: Callable[[], Any], rtol: float = 1e-2
) -> None:
    """Say whether the answer to an exercise is right; None means "not answered yet".

    answer: a number or a sequence of numbers. truth: computes the right one, so that it
    does not stand in the notebook. rtol: relative tolerance of each number.
    """
    if answer is None:
        print(f"Exercise {name}: put your answer in place of None and run this cell.")
        return
    try:
        given = np.asarray(answer, dtype=float)
    except (TypeError, ValueError):
        print(f"Exercise {name}: {answer!r} is not a number; give one.")
        return
    right = np.asarray(truth(), dtype=float)
    if given.shape != right.shape:
        wanted = f"{right.size} numbers" if right.ndim else "one number"
        print(f"Exercise {name}: {wanted} expected.")
    elif np.allclose(given, right, rtol=rtol, atol=0):
        print(f"Exercise {name}: right.")
    else:
        size = "small" if np.all(np.abs(given) < np.abs(right)) else "large"
        hint = f" It is too {size}." if not right.ndim else ""
        print(f"Exercise {name}: not yet.{hint}")
