"""``python -m unigame.cli``, which torchrun needs."""

import sys

from unigame.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
