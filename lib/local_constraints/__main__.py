"""`python -m lib.local_constraints build`: make the shipped models of data/ again."""

import sys

from lib.speech.assets import command

if __name__ == "__main__":
    command("local_constraints", sys.argv[1:])
