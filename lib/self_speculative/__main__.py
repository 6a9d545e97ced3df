"""`python -m lib.self_speculative`: see `command`."""

import sys

from lib.self_speculative.command import main

if __name__ == "__main__":
    main(sys.argv[1:])
