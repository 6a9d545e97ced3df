"""What every command line of the rooms promises: a sentence, or going on later.

Imported by the commands, not by the kit itself.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable

from lib.kit.cache import CacheError

MISTAKES = (ValueError, CacheError, FloatingPointError, OSError)


def run(
    o: argparse.Namespace,
    tell: Callable[[str], None],
    *more: type[Exception],
) -> None:
    """Do what was asked for, o.run(o); o.command is its name.

    tell: called with a sentence when it is interrupted; more: errors that are a user's
    mistakes here, beside MISTAKES. Raises SystemExit with a sentence for a mistake,
    with 130 for Ctrl-C.
    """
    try:
        o.run(o)
    except BrokenPipeError:  # whoever reads the texts has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (*MISTAKES, *more) as error:
        raise SystemExit(f"{o.command}: {error}") from None
    except KeyboardInterrupt:
        tell(f"{o.command}: interrupted; the same command goes on where it was.")
        raise SystemExit(130) from None
