"""The candidates of a few puzzles (a cell and a digit that no clue rules out), and networks that think on them.

`iterate` is one iteration of such a network in plain PyTorch, for any device; `Iterate` is the same with its gradient
written out in numba kernels, which a CPU does several times as fast. Below them are the sums and smooth maxima over
groups that ebm/ours.py is made of.
"""

import math
import threading

import numba
import numpy as np
import torch
import torch.nn.functional as F

CELL, DIGIT = np.arange(81).repeat(9), np.tile(np.arange(9), 81)  # of each of the 729 candidates
GROUP = np.stack(  # the four groups, of 81 a kind, that a candidate is in
    [CELL, CELL // 9 * 9 + DIGIT, CELL % 9 * 9 + DIGIT, (CELL // 27 * 3 + CELL % 9 // 3) * 9 + DIGIT]
)
KINDS = len(GROUP)  # what may stand in a cell; where a row, a column, a box may have a digit
MEMBERS = GROUP.argsort(1, kind="stable").reshape(KINDS, 81, 9)  # the candidates of each group
LIMIT = np.float32(30)  # of a logit: its exp() stays finite
compiled = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz", "arcp"})


@compiled
def max_kernel(x, members, first, out, winner):
    width = out.shape[2]
    for kind in range(out.shape[0]):
        for g in range(out.shape[1]):
            begin, end = first[kind, g], first[kind, g + 1]
            best, who = out[kind, g], winner[kind, g]
            best[:], who[:] = 0, -1
            for at in range(begin, end):
                i = members[kind, at]
                mine = x[i, kind * width : (kind + 1) * width]
                if at == begin:
                    best[:], who[:] = mine, i
                    continue
                for j in range(width):
                    more = mine[j] > best[j]
                    best[j] = mine[j] if more else best[j]
                    who[j] = i if more else who[j]


@compiled
def max_gradient_kernel(gradient, winner, group, out):
    width = gradient.shape[2]
    for i in range(len(out)):
        for kind in range(len(group)):
            given, who = gradient[kind, group[kind, i]], winner[kind, group[kind, i]]
            for j in range(width):
                out[i, kind * width + j] = given[j] if who[j] == i else np.float32(0)


@compiled
def hear_kernel(x, groups, group):
    """x [candidates, width] becomes relu(x + what the candidate's groups say)."""
    for i in range(len(x)):
        mine = x[i]
        for kind in range(len(group)):
            said = groups[kind, group[kind, i]]
            for j in range(len(mine)):
                mine[j] += said[j]
        for j in range(len(mine)):
            mine[j] = max(mine[j], np.float32(0))


@compiled
def hear_gradient_kernel(gradient, hidden, group, out):
    """gradient [candidates, width] becomes 0 where relu gave 0; out: its sum over the members of each group."""
    out[:] = 0
    for i in range(len(gradient)):
        mine, was = gradient[i], hidden[i]
        for j in range(len(mine)):
            mine[j] = mine[j] if was[j] > 0 else np.float32(0)
        for kind in range(len(group)):
            total = out[kind, group[kind, i]]
            for j in range(len(mine)):
                total[j] += mine[j]


@compiled
def read_kernel(x, gain, shift, head, head_bias, state, normed, scale, logit):
    """Layer norm, then one number for each candidate, softly limited to LIMIT either way."""
    width = x.shape[1]
    for i in range(len(x)):
        total = np.float32(0)
        for j in range(width):
            total += x[i, j]
        mean, total = total / np.float32(width), np.float32(0)
        for j in range(width):
            total += (x[i, j] - mean) * (x[i, j] - mean)
        scale[i] = np.float32(1) / np.sqrt(total / np.float32(width) + np.float32(1e-5))
        total = head_bias
        for j in range(width):
            normed[i, j] = (x[i, j] - mean) * scale[i]
            state[i, j] = normed[i, j] * gain[j] + shift[j]
            total += state[i, j] * head[j]
        logit[i] = LIMIT * np.tanh(total / LIMIT)


@compiled
def read_gradient_kernel(d_state, d_logit, logit, normed, scale, gain, shift, head, out, sums):
    """sums [4, width]: the gradients of gain, shift, head and, in [3, 0], of the head's bias."""
    width = normed.shape[1]
    for i in range(len(normed)):
        limited = logit[i] / LIMIT
        d_total = d_logit[i] * (np.float32(1) - limited * limited)
        sums[3, 0] += d_total
        mean, along = np.float32(0), np.float32(0)
        for j in range(width):
            d = d_state[i, j] + d_total * head[j]
            sums[0, j] += d * normed[i, j]
            sums[1, j] += d
            sums[2, j] += d_total * (normed[i, j] * gain[j] + shift[j])
            out[i, j] = d * gain[j]
            mean += out[i, j]
            along += out[i, j] * normed[i, j]
        mean, along = mean / np.float32(width), along / np.float32(width)
        for j in range(width):
            out[i, j] = scale[i] * (out[i, j] - mean - normed[i, j] * along)


@compiled
def share_kernel(logit, members, first, group, out):
    """out [candidates, 4]: the softmax over each of a candidate's four groups."""
    total, e = np.empty(first.shape[1], np.float32), np.exp(logit)
    for kind in range(out.shape[1]):
        for g in range(first.shape[1] - 1):
            total[g] = 0
            for at in range(first[kind, g], first[kind, g + 1]):
                total[g] += e[members[kind, at]]
        for i in range(len(e)):
            out[i, kind] = e[i] / total[group[kind, i]]


@compiled
def share_gradient_kernel(gradient, share, members, first, group, out):
    """Adds to out [candidates], the logits' gradient."""
    total = np.empty(first.shape[1], np.float32)
    for kind in range(share.shape[1]):
        for g in range(first.shape[1] - 1):
            total[g] = 0
            for at in range(first[kind, g], first[kind, g + 1]):
                total[g] += share[members[kind, at], kind] * gradient[members[kind, at], kind]
        for i in range(len(share)):
            out[i] += share[i, kind] * (gradient[i, kind] - total[group[kind, i]])


@compiled
def spread_kernel(x, groups, group, out):
    for i in range(len(x)):
        for j in range(x.shape[1]):
            out[i, j] = x[i, j]
        for kind in range(len(group)):
            for j in range(x.shape[1]):
                out[i, j] += groups[kind, group[kind, i], j]


@compiled
def collect_kernel(x, members, first, out):
    for kind in range(len(out)):
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


buffers = threading.local()


def room(name, *shape):
    """Memory for numbers that nobody keeps, the same again and again in each thread: it stays in the core's cache."""
    size = math.prod(shape)
    if len(getattr(buffers, name, ())) < size:
        setattr(buffers, name, torch.empty(size + size // 4))
    return getattr(buffers, name)[:size].view(shape)


def iterate(x, message, heard, state, bias, out, gain, shift, head, head_bias, board):
    """One iteration: messages to the groups, the largest of each group, an MLP, a residual and a norm.

    x [candidates, inputs] holds the state and, after it, whatever else a candidate sees.
    -> the next state, [candidates, 4] its share in each group (a softmax of the members' logits), and its logit.
    """
    width, index = len(message), board.index.to(x.device)
    said = (x[:, :width] @ message).view(len(x), len(index), width)
    none = x.new_zeros(board.groups, width)  # for a kind that has fewer groups than another
    best = [
        none.scatter_reduce(0, at[:, None].expand(-1, width), said[:, kind], "amax", include_self=False)
        for kind, at in enumerate(index)
    ]
    groups = torch.stack(best) @ heard.view(len(index), width, -1)
    hidden = torch.addmm(bias, x, state) + sum(group[at] for group, at in zip(groups, index))
    h = F.layer_norm(torch.addmm(x[:, :width], hidden.relu(), out), (width,), gain, shift)
    logit = LIMIT * torch.tanh(F.linear(h, head, head_bias).squeeze(1) / LIMIT)
    exp = logit.exp()
    totals = [exp.new_zeros(board.groups).index_add(0, at, exp)[at] for at in index]
    return h, exp[:, None] / torch.stack(totals, 1), logit


class Iterate(torch.autograd.Function):
    """The same on a CPU, faster: `Iterate.apply(...)` for `iterate(...)`."""

    @staticmethod
    def forward(context, x, message, heard, state, bias, out, gain, shift, head, head_bias, board):
        count, width, kinds = len(x), len(message), len(board.group)
        new = x.new_empty
        said = torch.mm(x[:, :width], message, out=room("said", count, kinds * width))
        best, winner = new(kinds, board.groups, width), torch.empty(kinds, board.groups, width, dtype=torch.int32)
        max_kernel(said.numpy(), board.members, board.first, best.numpy(), winner.numpy())
        hidden = torch.addmm(bias, x, state)
        groups = torch.bmm(best, heard.view(kinds, width, -1), out=room("groups", kinds, board.groups, len(out)))
        hear_kernel(hidden.numpy(), groups.numpy(), board.group)
        total = torch.addmm(x[:, :width], hidden, out, out=room("total", count, width))
        h, normed, scale, logit, share = new(count, width), new(count, width), new(count), new(count), new(count, KINDS)
        rows = gain.numpy(), shift.numpy(), head.numpy().ravel()
        read_kernel(total.numpy(), *rows, np.float32(head_bias.item()), *(t.numpy() for t in (h, normed, scale, logit)))
        share_kernel(logit.numpy(), board.members, board.first, board.group, share.numpy())
        context.board = board
        context.save_for_backward(
            x, message, heard, state, out, gain, shift, head, best, winner, hidden, normed, scale, logit, share
        )
        return h, share, logit

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context, d_h, d_share, d_logit):
        board, saved = context.board, context.saved_tensors
        x, message, heard, state, out, gain, shift, head, best, winner, hidden, normed, scale, logit, share = saved
        width, kinds = len(message), len(board.group)
        d_logit = d_logit.clone().numpy()
        layout = board.members, board.first, board.group
        share_gradient_kernel(d_share.contiguous().numpy(), share.numpy(), *layout, d_logit)
        sums, d_total = np.zeros((4, width), np.float32), room("total", len(x), width)
        arrays = (t.numpy() for t in (logit, normed, scale, gain, shift, head.ravel(), d_total))
        read_gradient_kernel(d_h.contiguous().numpy(), d_logit, *arrays, sums)
        d_hidden = torch.mm(d_total, out.T, out=room("hidden", len(x), len(out)))
        d_groups = room("groups", kinds, board.groups, len(out))
        hear_gradient_kernel(d_hidden.numpy(), hidden.numpy(), board.group, d_groups.numpy())
        d_x = d_hidden @ state.T
        back = heard.view(kinds, width, -1).transpose(1, 2)
        d_best = torch.bmm(d_groups, back, out=room("best", kinds, board.groups, width))
        d_said = room("said", len(x), kinds * width)
        max_gradient_kernel(d_best.numpy(), winner.numpy(), board.group, d_said.numpy())
        d_x[:, :width] += d_total
        d_x[:, :width].addmm_(d_said, message.T)
        gain_, shift_, head_, bias_ = torch.from_numpy(sums)
        d_heard = (best.transpose(1, 2) @ d_groups).view(kinds * width, -1)
        return (d_x, x[:, :width].T @ d_said, d_heard, x.T @ d_hidden, d_groups[0].sum(0), hidden.T @ d_total,
                gain_, shift_, head_.view_as(head), bias_[:1], None)  # fmt: skip


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
        for group, members in zip(GROUP, MEMBERS):
            alive &= ~clue[:, members].any(2)[:, group]
        self.arrange(alive)

    @classmethod
    def of(cls, alive):
        """The board of these candidates, bool [n, 729]; a cell with one candidate left counts as filled."""
        board = cls.__new__(cls)
        open_ = alive.reshape(-1, 81, 9).sum(2) > 1
        board.arrange(alive & open_.repeat(9, 1))
        return board

    def arrange(self, alive):
        self.puzzles, self.place = len(alive), np.nonzero(alive)  # puzzle, candidate
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

    def dense(self, numbers):
        """[puzzles, 729, width] from [candidates, width]."""
        out = numbers.new_zeros(self.puzzles, 729, numbers.shape[1])
        out[self.place] = numbers
        return out

    def logits(self, x, puzzle):
        """[n, 81, 9] from one number a candidate; what is ruled out gets a probability of 0."""
        out = torch.from_numpy(np.where(puzzle[:, CELL] == DIGIT + 1, 0.0, -1e4).astype(np.float32))
        return out.index_put((torch.from_numpy(self.place[0]), torch.from_numpy(self.place[1])), x).view(-1, 81, 9)
