"""What attention.py measures on a model whose attention is known."""

import pytest
import torch

from addition.attention import measure
from addition.tiny import TinyConfig


def test_flat_attention_is_shared_by_all_places():
    config = TinyConfig(qk_norm="none")
    named = config.initial(0, 0.5)
    named["query"] = torch.zeros_like(named["query"])
    found = measure(config, named)
    expected = sum(2 / (config.layout.first + 1 + i) for i in range(1, 10)) / 9
    assert found["own"] == pytest.approx(expected, abs=1e-5) == found["before"]
    assert len(found["digits_right"]) == 11 and max(found["digits_right"]) <= 1
