"""Runs of these tests are scored on few pairs and draw nothing; files are read for their checksums once."""

import functools
from collections import ChainMap

import pytest

import plumbing.run
from addition import plots, train


@pytest.fixture(scope="package", autouse=True)
def quick():
    checksums = plumbing.run.checksums
    of_one = functools.cache(lambda path: checksums([path]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "SCORE_SEEDS", (41,))
        patch.setattr(train, "SCORE_PAIRS", 2_000)
        patch.setattr(plots, "run_plots", lambda folder, rows: None)
        patch.setattr(plumbing.run, "checksums", lambda files: dict(ChainMap(*map(of_one, files))))
        yield
