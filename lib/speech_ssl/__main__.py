"""`python -m lib.speech_ssl build`: make the shipped models of data/ again."""

import sys

from lib.speech.assets import command

if __name__ == "__main__":
    command("speech_ssl", sys.argv[1:])
