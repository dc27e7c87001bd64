"""Set before any library is imported: no test reaches the network or grabs both cores."""

import gc
import os
import signal

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from pathlib import Path  # noqa: E402

import pytest  # noqa: E402

from tests.tiny import make_tiny_janus  # noqa: E402

# Every training run ends with a collection of garbage. What was imported is none, and is most of
# what there is: it is not looked at again in each of some hundred runs.
gc.freeze()

# What a script starts in the background, or under nohup, ignores these; tests send them.
for number, usual in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, usual)


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Janus, for tests that leave it as it is."""
    return make_tiny_janus(tmp_path_factory.mktemp("tiny") / "janus")
