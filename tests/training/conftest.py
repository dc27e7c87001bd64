"""Session-wide tiny checkpoint and helpers for the trainer's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny import make_tiny_janus


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_janus(tmp_path_factory.mktemp("tiny") / "janus")
