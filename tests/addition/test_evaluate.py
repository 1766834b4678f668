"""What is measured of attention on models whose attention is known."""

import math

import numpy as np
import pytest
import torch

from addition import smallest, tiny
from addition.evaluate_checkpoints import attention


def test_flat_attention_is_shared_by_all_places():
    config = tiny.TinyConfig()
    model = tiny.Recipe(tiny.Settings(model=config, val_size=1, test_size=1)).model()
    torch.nn.init.zeros_(model.query)
    found = attention(model)
    expected = sum(2 / (config.layout.first + 1 + i) for i in range(1, 10)) / 9
    assert found["own"] == pytest.approx(expected, abs=1e-5) == found["before"]
    assert len(found["digits_right"]) == 11 and max(found["digits_right"]) <= 1


def test_attention_by_distance():
    """Queries and keys that no token changes: the weights are those of a formula of the distance."""
    model = smallest.Recipe(smallest.Settings(val_size=1, test_size=1)).model()
    torch.nn.init.constant_(model.scale, 20.0)
    torch.nn.init.constant_(model.angle, 2 * math.pi * 10.2 / 12)  # nearest to 10 and 22, the digits of a column
    found, own, before = attention(model), [], []
    for place in range(24, 33):  # the second digit of the sum is predicted at 24
        e = np.exp(20 * np.cos(2 * math.pi * (place - np.arange(place + 1) - 10.2) / 12))
        own.append((e[place - 10] + e[place - 22]) / e.sum())
        before.append((e[place - 11] + e[place - 23]) / e.sum())
    assert found["own"] == pytest.approx(np.mean(own), abs=1e-4) and found["before"] == pytest.approx(
        np.mean(before), abs=1e-4
    )
