"""One rank of every run that tests look at: their imports cost more than the runs do.

Arguments: model, folder. Each part writes into a folder of its own name. Those of ranks that stop
come first: they are about processes in which nobody has said that there is no GPU.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.training import ranks, ranks_that_stop, sharded, two_ranks

PARTS = {"stop": ranks_that_stop, "mixed": two_ranks, "plain": ranks, "sharded": sharded}


def main(model: Path, folder: Path) -> None:
    for name, part in PARTS.items():
        (folder / name).mkdir(exist_ok=True)
        part.main(model, folder / name)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
