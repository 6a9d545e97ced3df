"""`python -m lib.objective_soup build`: the shipped models again."""

import sys

from lib.speech.assets import command

if __name__ == "__main__":
    command("objective_soup", sys.argv[1:])
