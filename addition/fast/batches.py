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


def batches(recipe):
    """A function of the step that makes the recipe's batches; its own where it has one."""
    if type(recipe).batch is not Recipe.batch:
        return recipe.batch
    layout = [np.array(part) for part in recipe.s.model.layout[:4]]
    begins, shift = np.zeros(2**BITS, bool), np.uint64(64 - BITS)
    begins[recipe.held_out >> shift] = True

    def batch(step):
        while True:
            a, b = recipe.operands(step)
            keys = key(a @ POWERS, b @ POWERS)
            if not recipe.held(keys[begins[keys >> shift]]).any():
                return torch.from_numpy(written(a, b, *layout))

    return batch
