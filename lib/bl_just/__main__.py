"""`python -m lib.bl_just train`: a recogniser from your recordings; `build`: data/."""

import sys

from lib.bl_just.command import main

if __name__ == "__main__":
    main(sys.argv[1:])
