"""`python -m lib.speech`: build the shipped corpus again; `chunk` serves `chunks`."""

from __future__ import annotations

import sys


def main(words: list[str]) -> None:
    """chunk PATH does one job from standard input; build makes what data/ ships."""
    if len(words) == 2 and words[0] == "chunk":
        from lib.speech.chunks import work

        return work(words[1])
    if words == ["build"]:
        from lib.speech.synthesis import build_shipped

        return build_shipped()
    raise SystemExit("Usage: python -m lib.speech build")


if __name__ == "__main__":
    main(sys.argv[1:])
