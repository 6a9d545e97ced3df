"""`python -m lib.language`: the commands of `command`."""

import sys

from lib.language.command import main

if __name__ == "__main__":
    main(sys.argv[1:])
