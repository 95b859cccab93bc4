"""A short round of `make chaos`."""

from __future__ import annotations

import os
from pathlib import Path

from conftest import cluster_dir

from tests.chaos.__main__ import chaos


def test_nothing_is_lost_or_wrong_after_killing_everything():
    run, faults = chaos(Path(f"{cluster_dir()}-{os.getpid()}-chaos"), events=15, seed=os.getpid())
    assert faults == [], f"seed {os.getpid()}, {dict(run.done)}"
