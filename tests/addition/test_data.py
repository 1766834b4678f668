"""Sums as tokens, and what the training batches are made of."""

import math

import numpy as np
import pytest

from addition.data import (
    EOS,
    EQUALS,
    LIMIT,
    PLUS,
    REVERSED,
    STANDARD,
    Stream,
    carry_pairs,
    encode,
    held_out,
    phases,
    uniform_pairs,
)

DIGITS = "0123456789"
NONE = np.zeros((0, 2), dtype=np.int64)


def number(rows, places):
    return sum(rows[:, place].astype(np.int64) * 10**i for i, place in enumerate(places))


def test_one_row_by_hand():
    row = encode([(12, 9999999999)])[0].tolist()
    assert row == [0] * 8 + [1, 2, PLUS] + [9] * 10 + [EQUALS] + [1, 1] + [0] * 8 + [1, EOS]
    assert (STANDARD.length, STANDARD.first, STANDARD.queries) == (33, 21, 12)
    assert encode([(12, 30)], REVERSED)[0].tolist() == [0, 2, 1] + [0] * 10 + [0, 3] + [0] * 9 + [2, 4] + [0] * 9


@pytest.mark.parametrize("layout", [STANDARD, REVERSED])
def test_rows_hold_the_pairs_and_their_sums(layout):
    pairs = np.concatenate([uniform_pairs(3, 200), carry_pairs(4, 200), [[0, 0], [LIMIT - 1, LIMIT - 1]]])
    rows = encode(pairs, layout)
    assert (number(rows, layout.a) == pairs[:, 0]).all() and (number(rows, layout.b) == pairs[:, 1]).all()
    assert (number(rows, layout.sum) == pairs.sum(1)).all()
    assert rows.max() < layout.vocabulary


def test_numbers_out_of_range_are_named():
    with pytest.raises(ValueError, match="1"):
        encode([(1, 2), (3, LIMIT)])


def batch(
    seed=1, step=0, least=1, curriculum="", simple="09", simples=0.0, carries=0.0, held=NONE, size=4000, layout=STANDARD
):
    rows = np.zeros((size, layout.length + 1), dtype=np.uint8)
    Stream(seed, held, layout).fill(step, least, phases(curriculum)[0], simple, simples, carries, rows)
    return number(rows, layout.a), number(rows, layout.b), number(rows, layout.sum)


def test_batches_are_a_function_of_seed_and_step():
    first, again, step, seed = batch(), batch(), batch(step=1), batch(seed=2)
    assert all((x == y).all() for x, y in zip(first, again))
    assert (first[0] != step[0]).mean() > 0.5 and (first[0] != seed[0]).mean() > 0.5


def test_digit_counts_are_shared_and_uniform():
    a, b, total = batch(curriculum="9:3", size=30_000)
    assert (total == a + b).all() and a.max() < 1000 and b.max() < 1000
    # count n has probability 1/3; a < 10 then has 1, 1/10, 1/100; both at once show that the count is shared
    assert (a < 10).mean() == pytest.approx((1 + 0.1 + 0.01) / 3, abs=0.01)
    assert ((a < 10) & (b < 10)).mean() == pytest.approx((1 + 0.01 + 0.0001) / 3, abs=0.01)
    digits = np.bincount(a[(a >= 100)] % 10, minlength=10) / (a >= 100).sum()
    assert np.abs(digits - 0.1).max() < 0.015


def test_stages_bound_the_digits():
    a, b, _ = batch(curriculum="9:4@02", least=4)
    assert set(str(a.max()) + str(b.max())) <= set("02") and a.max() > 2000


def test_carry_rows_have_long_carries():
    def chains(a, b):
        """How many times a digit pair sums to nine, the stuff of long carries."""
        return np.mean([(a // 10**i % 10 + b // 10**i % 10 == 9).mean() for i in range(10)])

    plain, rich = batch(least=10), batch(least=10, carries=1.0)
    assert chains(*plain[:2]) == pytest.approx(0.1, abs=0.01)
    assert chains(*rich[:2]) == pytest.approx(0.55, abs=0.02)
    pairs = carry_pairs(1, 4000)
    assert chains(pairs[:, 0], pairs[:, 1]) == pytest.approx(0.55, abs=0.02)


def test_held_out_pairs_never_come():
    everything = np.array([(a, b) for a in range(10) for b in range(10)], dtype=np.int64)
    kept = [(0, 3), (7, 7), (9, 1)]
    held = np.array([pair for pair in everything.tolist() if tuple(pair) not in kept], dtype=np.int64)
    a, b, _ = batch(curriculum="9:1", held=held)
    assert set(zip(a.tolist(), b.tolist())) == set(kept)


def test_held_out_sets_belong_to_the_seed():
    validation, test, both = held_out(1, 50, 100)
    assert len(validation) == 50 and len(test) == 100
    assert sorted(map(tuple, np.concatenate([validation, test]).tolist())) == list(map(tuple, both.tolist()))
    assert not np.array_equal(held_out(2, 50, 100)[0], validation)


def test_curricula():
    assert [tuple(s) for s in phases("2000:3,7000:6")] == [
        (2000, 3, DIGITS),
        (7000, 6, DIGITS),
        (math.inf, 10, DIGITS),
    ]
    assert phases("5:10@01")[0] == (5, 10, "01")
    for wrong in ("3", "10:11", "10:0", "10:3@", "a:b", "9:3,5:4"):
        with pytest.raises(ValueError, match="curriculum"):
            phases(wrong)
