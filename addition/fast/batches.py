"""The batches of train.py's Recipe.batch, from the same random numbers, in about half the time."""

import numba
import numpy as np
import torch

from addition.train import POWERS, Recipe, key

BITS = 18  # of a pair's key, in a table that says whether a held-out key begins so: most pairs need no other look-up


@numba.njit(cache=True, nogil=True)
def written(a, b, template, at_a, at_b, at_sum):
    """Rows of tokens, with sums made digit by digit as on paper."""
    rows = np.empty((len(a), len(template)), np.uint8)
    for row in range(len(a)):
        rows[row], carry = template, 0
        for i in range(len(at_a)):
            total = a[row, i] + b[row, i] + carry
            carry = int(total > 9)
            rows[row, at_a[i]], rows[row, at_b[i]], rows[row, at_sum[i]] = a[row, i], b[row, i], total - 10 * carry
        rows[row, at_sum[-1]] = carry
    return rows


class Batches:
    """Called with a step, what recipe.batch returns."""

    def __init__(self, recipe):
        self.recipe, self.layout = recipe, [np.array(part) for part in recipe.s.model.layout[:4]]
        self.begins = np.zeros(2**BITS, bool)
        self.begins[self.first_bits(recipe.held_out)] = True

    def first_bits(self, keys):
        return keys >> np.uint64(64 - BITS)

    def __call__(self, step):
        while True:
            a, b = self.recipe.operands(step)
            keys = key(a @ POWERS, b @ POWERS)
            if not self.recipe.held(keys[self.begins[self.first_bits(keys)]]).any():
                return torch.from_numpy(written(a, b, *self.layout))


def batches(recipe):
    """A function that makes the recipe's batches; its own where it has one."""
    return Batches(recipe) if type(recipe).batch is Recipe.batch else recipe.batch
