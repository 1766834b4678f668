"""The weights that are shipped add, and so do their exported files."""

from pathlib import Path

import numpy as np
import pytest
import torch

from addition import fused, verify
from addition.data import carry_pairs, encode
from addition.evaluate_checkpoints import load
from addition.model import count

FOLDER = Path(__file__).parents[2] / "addition/weights"
PAIRS = np.concatenate([carry_pairs(5, 2000), verify.EDGES])


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.pt")), ids=lambda path: path.stem)
def test_weights_add(path):
    config, named = load(path)
    rows = torch.from_numpy(encode(PAIRS, config.layout))[None]
    tables = config.tables({name: value[None] for name, value in named.items()})
    wrong = (fused.decode(tables, rows, config.layout, config.kind) != rows[..., list(config.layout.sum)]).any(-1)
    assert f"{count(config)}p" == path.stem and wrong.sum() <= len(PAIRS) // 100


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_exported_files_add(path):
    module = verify.read(path)
    model, metadata = module.build_model()
    assert f"adder_{metadata['params']}p" == path.stem and verify.count(model) == metadata["params"]
    pairs = PAIRS[-300:].tolist()
    sums = module.add_batch(model, [a for a, _ in pairs], [b for _, b in pairs])
    assert sum(s != a + b for s, (a, b) in zip(sums, pairs)) <= 3
    assert module.add(model, 9_999_999_999, 1) == 10**10
