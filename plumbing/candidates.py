"""The candidates of a few puzzles (a cell and a digit that no clue rules out), and sums and maxima over the groups
that they share: numba kernels with their gradients, because plain torch takes five times as long for these on a CPU.
"""

import numba
import numpy as np
import torch

CELL, DIGIT = np.arange(81).repeat(9), np.tile(np.arange(9), 81)  # of each of the 729 candidates
GROUP = np.stack(  # the four groups, of 81 a kind, that a candidate is in
    [CELL, CELL // 9 * 9 + DIGIT, CELL % 9 * 9 + DIGIT, (CELL // 27 * 3 + CELL % 9 // 3) * 9 + DIGIT]
)
KINDS = len(GROUP)  # what may stand in a cell; where a row, a column, a box may have a digit
compiled = numba.njit(cache=True, nogil=True, error_model="numpy")


@compiled
def max_kernel(x, members, first, out, winner):
    width = out.shape[2]
    for kind in range(KINDS):
        for g in range(out.shape[1]):
            out[kind, g], winner[kind, g] = 0, -1
            for at in range(first[kind, g], first[kind, g + 1]):
                i = members[kind, at]
                start = at == first[kind, g]
                for j in range(width):
                    more = start or x[i, kind * width + j] > out[kind, g, j]
                    out[kind, g, j] = x[i, kind * width + j] if more else out[kind, g, j]
                    winner[kind, g, j] = i if more else winner[kind, g, j]


@compiled
def max_gradient_kernel(gradient, winner, members, first, out):
    width = gradient.shape[2]
    for kind in range(KINDS):
        for g in range(gradient.shape[1]):
            for at in range(first[kind, g], first[kind, g + 1]):
                i = members[kind, at]
                for j in range(width):
                    out[i, kind * width + j] = gradient[kind, g, j] if winner[kind, g, j] == i else np.float32(0)


@compiled
def spread_kernel(x, groups, group, out):
    for i in range(len(x)):
        a, b, c, d = group[0, i], group[1, i], group[2, i], group[3, i]
        for j in range(x.shape[1]):
            out[i, j] = x[i, j] + groups[0, a, j] + groups[1, b, j] + groups[2, c, j] + groups[3, d, j]


@compiled
def collect_kernel(x, members, first, out):
    for kind in range(KINDS):
        for g in range(out.shape[1]):
            out[kind, g] = 0
            for at in range(first[kind, g], first[kind, g + 1]):
                i = members[kind, at]
                for j in range(x.shape[1]):
                    out[kind, g, j] += x[i, j]


@compiled
def log_sum_kernel(e, members, first, total):
    """e [candidates, 4 x width] becomes its share of its group's sum."""
    width = total.shape[2]
    for kind in range(KINDS):
        for g in range(total.shape[1]):
            total[kind, g] = 0
            for at in range(first[kind, g], first[kind, g + 1]):
                for j in range(width):
                    total[kind, g, j] += e[members[kind, at], kind * width + j]
            for at in range(first[kind, g], first[kind, g + 1]):
                for j in range(width):
                    e[members[kind, at], kind * width + j] /= total[kind, g, j]


@compiled
def weighted_kernel(weight, groups, group, out):
    width = groups.shape[2]
    for i in range(group.shape[1]):
        for kind in range(KINDS):
            for j in range(width):
                out[i, kind * width + j] = weight[i, kind * width + j] * groups[kind, group[kind, i], j]


@compiled
def weighted_gradient_kernel(gradient, weight, groups, members, first, total, out):
    """With respect to what the weights are a softmax of (out), and to groups (total)."""
    width = groups.shape[2]
    for kind in range(KINDS):
        for g in range(total.shape[1]):
            total[kind, g] = 0
            for at in range(first[kind, g], first[kind, g + 1]):
                i = members[kind, at]
                for j in range(width):
                    total[kind, g, j] += weight[i, kind * width + j] * gradient[i, kind * width + j]
            for at in range(first[kind, g], first[kind, g + 1]):
                i = members[kind, at]
                for j in range(width):
                    c = kind * width + j
                    out[i, c] = weight[i, c] * groups[kind, g, j] * (gradient[i, c] - total[kind, g, j])


class GroupMax(torch.autograd.Function):
    """[candidates, 4 x width] -> [4, groups, width]: the largest over each group's members."""

    @staticmethod
    def forward(context, x, board):
        out = x.new_empty(KINDS, board.groups, x.shape[1] // KINDS)
        winner = torch.empty(out.shape, dtype=torch.int32)
        max_kernel(x.numpy(), board.members, board.first, out.numpy(), winner.numpy())
        context.board, context.winner = board, winner
        return out

    @staticmethod
    def backward(context, gradient):
        board, winner = context.board, context.winner.numpy()
        out = torch.empty(len(board.place[0]), KINDS * gradient.shape[2])
        max_gradient_kernel(gradient.contiguous().numpy(), winner, board.members, board.first, out.numpy())
        return out, None


class Spread(torch.autograd.Function):
    """x [candidates, width] plus what each candidate's four groups say [4, groups, width]."""

    @staticmethod
    def forward(context, x, groups, board):
        context.board, out = board, torch.empty_like(x)
        spread_kernel(x.numpy(), groups.numpy(), board.group, out.numpy())
        return out

    @staticmethod
    def backward(context, gradient):
        gradient = gradient.contiguous()
        return gradient, Collect.apply(gradient, context.board), None


class Collect(torch.autograd.Function):
    """[candidates, width] -> [4, groups, width]: the sum over each group's members."""

    @staticmethod
    def forward(context, x, board):
        context.board, out = board, x.new_empty(KINDS, board.groups, x.shape[1])
        collect_kernel(x.numpy(), board.members, board.first, out.numpy())
        return out

    @staticmethod
    def backward(context, gradient):
        return Gather.apply(gradient, context.board), None


class Gather(torch.autograd.Function):
    """[4, groups, width] -> [candidates, width]: the sum over each candidate's groups. Collect's gradient."""

    @staticmethod
    def forward(context, groups, board):
        context.board, out = board, groups.new_zeros(len(board.place[0]), groups.shape[2])
        spread_kernel(out.numpy(), groups.contiguous().numpy(), board.group, out.numpy())
        return out

    @staticmethod
    def backward(context, gradient):
        return Collect.apply(gradient.contiguous(), context.board), None


class LogSumExp(torch.autograd.Function):
    """[candidates, 4 x width] -> [4, groups, width]: a smooth maximum of each group's members, twice differentiable."""

    @staticmethod
    def forward(context, x, board):
        weight = x.clamp(max=60).exp()  # finite in float32
        total = x.new_empty(KINDS, board.groups, x.shape[1] // KINDS)
        log_sum_kernel(weight.numpy(), board.members, board.first, total.numpy())
        context.board = board
        context.save_for_backward(x, weight)
        return total.clamp_(min=1e-20).log_()  # a kind may have fewer groups than another

    @staticmethod
    def backward(context, gradient):
        x, weight = context.saved_tensors
        return Weighted.apply(x, weight, gradient.contiguous(), context.board), None


class Weighted(torch.autograd.Function):
    """LogSumExp's gradient: what each of a candidate's groups has, times its weight there, a softmax of x."""

    @staticmethod
    def forward(context, x, weight, groups, board):
        context.board, out = board, torch.empty_like(x)
        weighted_kernel(weight.numpy(), groups.numpy(), board.group, out.numpy())
        context.save_for_backward(weight, groups)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context, gradient):
        weight, groups = context.saved_tensors
        total, out = torch.empty_like(groups), torch.empty_like(weight)
        arrays = (part.numpy() for part in (gradient.contiguous(), weight, groups))
        board = context.board
        weighted_gradient_kernel(*arrays, board.members, board.first, total.numpy(), out.numpy())
        return out, None, total, None


class Board:
    """The candidates of a few puzzles that no clue rules out, and who shares a group with whom."""

    def __init__(self, puzzle):
        clue = (puzzle[:, :, None] == np.arange(1, 10)).reshape(len(puzzle), 729)
        alive = np.ones_like(clue)
        for group in GROUP:
            alive &= ~clue[:, group.argsort(kind="stable").reshape(81, 9)].any(2)[:, group]
        self.place = np.nonzero(alive)  # puzzle, candidate
        keys = self.place[0] * 81 + GROUP[:, self.place[1]]
        found = [np.unique(key, return_inverse=True, return_counts=True) for key in keys]
        self.groups = max(len(key) for key, _, _ in found)  # as many of each kind, unless the clues contradict
        self.group = np.stack([inverse for _, inverse, _ in found])
        self.members = keys.argsort(1, kind="stable")
        self.first = np.full((KINDS, self.groups + 1), len(self.place[0]))
        for first, (_, _, counts) in zip(self.first, found):
            first[0], first[1 : len(counts) + 1] = 0, counts.cumsum()
        sizes = [counts[inverse] for _, inverse, counts in found]
        self.sizes = torch.from_numpy(np.stack(sizes, 1).astype(np.float32) / 9)
        self.index = torch.from_numpy(self.group)

    def logits(self, x, puzzle):
        """[n, 81, 9] from one number a candidate; what is ruled out gets a probability of 0."""
        out = torch.from_numpy(np.where(puzzle[:, CELL] == DIGIT + 1, 0.0, -1e4).astype(np.float32))
        return out.index_put((torch.from_numpy(self.place[0]), torch.from_numpy(self.place[1])), x).view(-1, 81, 9)
