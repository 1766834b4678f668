"""The weights that are shipped add, and so do their exported files."""

from pathlib import Path

import numpy as np
import pytest

from addition import train, verify
from addition.evaluate_checkpoints import load
from addition.train import carry_pairs, count, encode_pairs

FOLDER = Path(__file__).parents[2] / "addition/weights"
PAIRS = np.concatenate([carry_pairs(5, 2000), verify.EDGES])


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.pt")), ids=lambda path: path.stem)
def test_weights_add(path):
    model = load(path)
    wrong = len(PAIRS) - train.test(model, encode_pairs(PAIRS, model.config.layout))[1]
    assert f"{count(model)}p" == path.stem and wrong <= len(PAIRS) // 100


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_exported_files_add(path):
    module = verify.read(path)
    model, metadata = module.build_model()
    assert f"adder_{metadata['params']}p" == path.stem and verify.count(model) == metadata["params"]
    pairs = PAIRS[-300:].tolist()
    sums = module.add_batch(model, [a for a, _ in pairs], [b for _, b in pairs])
    assert sum(s != a + b for s, (a, b) in zip(sums, pairs)) <= 3
    assert module.add(model, 9_999_999_999, 1) == 10**10
