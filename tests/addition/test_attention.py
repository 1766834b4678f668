"""What attention.py measures on a model whose attention is known."""

import pytest
import torch

from addition import tiny
from addition.attention import measure


def test_flat_attention_is_shared_by_all_places():
    config = tiny.TinyConfig(qk_norm="none")
    model = tiny.Recipe(tiny.Settings(model=config, val_size=1, test_size=1)).model()
    torch.nn.init.zeros_(model.query)
    found = measure(model)
    expected = sum(2 / (config.layout.first + 1 + i) for i in range(1, 10)) / 9
    assert found["own"] == pytest.approx(expected, abs=1e-5) == found["before"]
    assert len(found["digits_right"]) == 11 and max(found["digits_right"]) <= 1
