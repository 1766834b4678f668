"""Sums as tokens: layouts, training batches, held-out pairs. Every batch is a function of (seed, step) alone."""

import itertools
import math
import re
from dataclasses import dataclass
from typing import NamedTuple

import numba
import numpy as np

DIGITS = 10  # of each operand; the sum has one more
LIMIT = 10**DIGITS
PLUS, EQUALS, PAD, EOS = 10, 11, 12, 13
SCORE_SEEDS = (41, 100, 200, 300, 400, 500, 999, 1234, 7777, 31415)  # the final score: 10,000 pairs from each


@dataclass(frozen=True)
class Layout:
    """Positions of the digits of A, B and the sum in a row of tokens; entry i is that of the digit of 10^i."""

    template: tuple[int, ...]  # the row, with zeros at the positions of digits
    a: tuple[int, ...]
    b: tuple[int, ...]
    sum: tuple[int, ...]
    vocabulary: int

    @property
    def length(self):  # of the model's input, which leaves out the last token: it is a target only
        return len(self.template) - 1

    @property
    def first(self):  # the position that predicts the sum's first digit
        return self.sum[0] - 1

    @property
    def queries(self):  # positions that predict something
        return self.length - self.first


# 0123456789+0123456789=01234567890$: operands most significant digit first, the sum least significant first.
STANDARD = Layout((0,) * 10 + (PLUS,) + (0,) * 10 + (EQUALS,) + (0,) * 11 + (EOS,), a=tuple(range(9, -1, -1)),
                  b=tuple(range(20, 10, -1)), sum=tuple(range(22, 33)), vocabulary=14)  # fmt: skip
# The leaderboard's small models: all numbers least significant digit first, zeros as separators, no other token.
REVERSED = Layout((0,) * 35, a=tuple(range(1, 11)), b=tuple(range(13, 23)), sum=tuple(range(24, 35)), vocabulary=10)


def encode(pairs, layout=STANDARD):
    """Rows of tokens, prompt and answer, of (A, B) pairs."""
    pairs = np.asarray(pairs, dtype=np.int64).reshape(-1, 2)
    if pairs.size and (pairs.min() < 0 or pairs.max() >= LIMIT):
        row = int(np.flatnonzero(((pairs < 0) | (pairs >= LIMIT)).any(1))[0])
        raise ValueError(f"pair {row} is {tuple(pairs[row].tolist())}; both numbers must be 0 to {LIMIT - 1}")
    rows = np.tile(np.array(layout.template, dtype=np.uint8), (len(pairs), 1))
    for places, value in ((layout.a, pairs[:, 0]), (layout.b, pairs[:, 1]), (layout.sum, pairs.sum(1))):
        for i, place in enumerate(places):
            rows[:, place] = value // 10**i % 10
    return rows


def uniform_pairs(seed, count):
    return np.random.default_rng(seed).integers(0, LIMIT, (count, 2))


def carry_pairs(seed, count):
    """Pairs with long carries: a share of their digit pairs, drawn anew for each, sums to nine."""
    rng = np.random.default_rng([seed, 9])
    a = rng.integers(0, 10, (count, DIGITS))
    b = np.where(rng.random((count, DIGITS)) < rng.random((count, 1)), 9 - a, rng.integers(0, 10, (count, DIGITS)))
    powers = 10 ** np.arange(DIGITS)
    return np.stack([a @ powers, b @ powers], 1)


def held_out(seed, validation, test):
    """This seed's validation pairs, test pairs, and all of them sorted: training batches leave those out."""
    pairs = uniform_pairs([seed, 1], validation + test)
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))
    return pairs[:validation], pairs[validation:], np.ascontiguousarray(pairs[order])


class Stage(NamedTuple):
    until: float  # step
    digits: int  # of the longest operand
    among: str  # the digits they are made of


def phases(text):
    """'2000:3,7000:6': operands of up to 3 digits before step 2,000, of up to 6 before 7,000.

    '500:10@09': before step 500 of up to 10 digits, zeros and nines only.
    """
    found = []
    for part in filter(None, text.split(",")):
        match = re.fullmatch(r"(\d+):(\d+)(?:@(\d+))?", part)
        if not match or not 1 <= int(match[2]) <= DIGITS:
            form = f"STEP:DIGITS or STEP:DIGITS@SET, such as 500:{DIGITS} or 500:{DIGITS}@0189"
            raise ValueError(f"curriculum {text!r}: {part!r} must read {form}")
        found.append(Stage(int(match[1]), int(match[2]), match[3] or "0123456789"))
    if any(after.until <= before.until for before, after in itertools.pairwise(found)):
        raise ValueError(f"curriculum {text!r}: its steps must rise")
    return (*found, Stage(math.inf, DIGITS, "0123456789"))


@numba.njit(cache=True, nogil=True)
def mix(x):
    """splitmix64: the next random 64 bits of a counter."""
    x += np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@numba.njit(cache=True, nogil=True)
def contains(pairs, a, b):
    row = np.searchsorted(pairs[:, 0], a)
    while row < len(pairs) and pairs[row, 0] == a and pairs[row, 1] < b:
        row += 1
    return row < len(pairs) and pairs[row, 0] == a and pairs[row, 1] == b


@numba.njit(cache=True, nogil=True)
def fill_rows(key, least, digits, among, simple, simples, carries, held, template, places, rows):
    """One batch. The two operands of a row have the same number of digits, `least` to `digits`.

    A share `carries` of the rows has long carries. Digits are drawn from `among`, in a share `simples` of the rows
    from `simple`. Pairs in `held` are drawn again.
    """
    for row in range(len(rows)):
        state = mix(key + np.uint64(row) * np.uint64(0xD1342543DE82EF95))
        while True:
            state = mix(state)
            count = least + int(state % np.uint64(digits - least + 1))
            state = mix(state)
            rich = (state >> np.uint64(40)) * (1.0 / (1 << 24)) < carries
            state = mix(state)
            source = simple if (state >> np.uint64(40)) * (1.0 / (1 << 24)) < simples else among
            size = np.uint64(len(source))
            state = mix(state)
            nines = state >> np.uint64(48)  # / 65,536 is the probability that two digits sum to nine
            a = b = np.int64(0)
            scale = np.int64(1)
            for _ in range(count):
                state = mix(state)
                digit = source[state % size]
                other = source[(state >> np.uint64(24)) % size]
                if rich and (state >> np.uint64(48)) < nines:
                    for allowed in source:
                        if allowed == 9 - digit:
                            other = allowed
                a += scale * digit
                b += scale * other
                scale *= 10
            if not contains(held, a, b):
                break
        rows[row] = template
        for positions, number in zip(places, (a, b, a + b)):
            for position in positions:
                rows[row, position] = number % 10
                number //= 10


class Stream:
    """The training batches of one seed."""

    def __init__(self, seed, held, layout=STANDARD):
        self.seed = seed
        places = tuple(np.array(p, dtype=np.int64) for p in (layout.a, layout.b, layout.sum))
        self.fixed = (held, np.array(layout.template, dtype=np.uint8), places)

    def fill(self, step, least, stage, simple, simples, carries, rows):
        key = np.uint64(np.random.SeedSequence([self.seed, step]).generate_state(1, np.uint64)[0])
        among, simple = (np.array([int(digit) for digit in text]) for text in (stage.among, simple))
        fill_rows(key, least, stage.digits, among, simple, simples, carries, *self.fixed, rows)
