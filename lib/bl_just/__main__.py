"""`python -m lib.bl_just build`: make the shipped models of data/ again."""

import sys

from lib.speech.assets import command

if __name__ == "__main__":
    command("bl_just", sys.argv[1:])
