"""``python -m unigame``: so that a launcher can start the command, as ``torchrun -m unigame``."""

import sys

from unigame.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
