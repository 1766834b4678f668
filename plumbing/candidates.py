"""The candidates of a few puzzles (a cell and a digit that no clue rules out), and networks that think on them.

`think_anywhere` iterates such a network in plain PyTorch, for any device; `think` does the same on a CPU several times
as fast, with its gradient written out in numba kernels. Below them are the sums and smooth maxima over
groups that ebm/ours.py is made of.

Boards are made on the CPU, of puzzles there; what a network needs of a board is moved to its device once.
"""

import math
import threading

import numpy as np
import torch
import torch.nn.functional as F

from plumbing.product import add_product_transposed, compiled, product

CELL, DIGIT = np.arange(81).repeat(9), np.tile(np.arange(9), 81)  # of each of the 729 candidates
GROUP = np.stack(  # the four groups, of 81 a kind, that a candidate is in
    [CELL, CELL // 9 * 9 + DIGIT, CELL % 9 * 9 + DIGIT, (CELL // 27 * 3 + CELL % 9 // 3) * 9 + DIGIT]
)
KINDS = len(GROUP)  # what may stand in a cell; where a row, a column, a box may have a digit
PEERS = (GROUP[:, :, None] == GROUP[:, None]).any(0) & ~np.eye(729, dtype=bool)  # of two: each excludes the other
MEMBERS = GROUP.argsort(1, kind="stable").reshape(KINDS, 81, 9)  # the candidates of each group
LIMIT = np.float32(30)  # of a logit: its exp() stays finite


@compiled
def max_kernel(x, members, first, sums, out, winner):
    """out [4, groups, width]: the largest of x's first 4 x width columns in each group; winner: which candidate's.

    Of the last `sums` of each width columns the sum.
    """
    width = out.shape[2]  # plain indices here: a slice of a row costs more than the row's numbers
    for kind in range(len(out)):
        c = kind * width
        for g in range(out.shape[1]):
            begin, end = first[kind, g], first[kind, g + 1]
            for j in range(width):  # of a kind with fewer groups than another the last ones are empty
                out[kind, g, j] = x[members[kind, begin], c + j] if begin < end else np.float32(0)
                winner[kind, g, j] = members[kind, begin] if begin < end else -1
            for at in range(begin + 1, end):
                i = members[kind, at]
                for j in range(width - sums):
                    winner[kind, g, j] = i if x[i, c + j] > out[kind, g, j] else winner[kind, g, j]
                    out[kind, g, j] = max(x[i, c + j], out[kind, g, j])
                for j in range(width - sums, width):
                    out[kind, g, j] += x[i, c + j]


@compiled
def max_gradient_kernel(gradient, winner, group, sums, out):
    """Into out's first 4 x width columns."""
    width = gradient.shape[2]
    for i in range(len(out)):
        for kind in range(len(group)):
            given, who = gradient[kind, group[kind, i]], winner[kind, group[kind, i]]
            mine = out[i, kind * width : (kind + 1) * width]
            for j in range(width - sums):
                mine[j] = given[j] if who[j] == i else np.float32(0)
            for j in range(width - sums, width):
                mine[j] = given[j]


@compiled
def hear_kernel(x, given, groups, group, out):
    """out [candidates, mlp]: relu(x's last columns + what is given + what the candidate's groups say)."""
    width = out.shape[1]
    for i in range(len(out)):
        mine, own, always = out[i], x[i, x.shape[1] - width :], given[i]
        a, b, c, d = groups[0, group[0, i]], groups[1, group[1, i]], groups[2, group[2, i]], groups[3, group[3, i]]
        for j in range(width):
            mine[j] = max(own[j] + always[j] + a[j] + b[j] + c[j] + d[j], np.float32(0))


@compiled
def hear_gradient_kernel(gradient, hidden, group, out, given):
    """gradient's last columns become 0 where relu gave 0; out: their sum over each group's members; added to given."""
    out[:] = 0
    width = hidden.shape[1]
    for i in range(len(gradient)):
        mine, was, always = gradient[i, gradient.shape[1] - width :], hidden[i], given[i]
        for j in range(width):
            mine[j] = mine[j] if was[j] > 0 else np.float32(0)
            always[j] += mine[j]
        for kind in range(len(group)):
            total = out[kind, group[kind, i]]
            for j in range(width):
                total[j] += mine[j]


@compiled
def read_kernel(x, gain, shift, head, head_bias, state, normed, scale, logit):
    """Layer norm into state's first columns, then one number for each candidate, softly limited to LIMIT either way."""
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
    """out holds what the state's gradient has beside d_state, and becomes the gradient of x.

    sums [4, width]: the gradients of gain, shift, head and, in [3, 0], of the head's bias.
    """
    width = normed.shape[1]
    for i in range(len(normed)):
        limited = logit[i] / LIMIT
        d_total = d_logit[i] * (np.float32(1) - limited * limited)
        sums[3, 0] += d_total
        mean, along = np.float32(0), np.float32(0)
        for j in range(width):
            d = d_state[i, j] + out[i, j] + d_total * head[j]
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
    """Out's last four columns: the softmax over each of a candidate's four groups."""
    total, e, begin = np.empty(first.shape[1], np.float32), np.exp(logit), out.shape[1] - KINDS
    for kind in range(KINDS):
        for g in range(first.shape[1] - 1):
            total[g] = 0
            for at in range(first[kind, g], first[kind, g + 1]):
                total[g] += e[members[kind, at]]
        for i in range(len(e)):
            out[i, begin + kind] = e[i] / total[group[kind, i]]


@compiled
def share_gradient_kernel(gradient, state, members, first, group, out):
    """The gradient of the last four columns, added to out [candidates], the logits'."""
    total, begin = np.empty(first.shape[1], np.float32), state.shape[1] - KINDS
    for kind in range(KINDS):
        c = begin + kind
        for g in range(first.shape[1] - 1):
            total[g] = 0
            for at in range(first[kind, g], first[kind, g + 1]):
                total[g] += state[members[kind, at], c] * gradient[members[kind, at], c]
        for i in range(len(state)):
            out[i] += state[i, c] * (gradient[i, c] - total[group[kind, i]])


@compiled
def puzzle_of(layout, p):
    """One puzzle's part of a board, counted from 0: members, first, group."""
    members, first, group, rows, starts, _ = layout
    begin, count = rows[p], rows[p + 1] - rows[p]
    mine = np.full((KINDS, (starts[:, p + 1] - starts[:, p]).max() + 1), count)
    own = np.empty((KINDS, count), np.int64)
    for kind in range(KINDS):
        for g in range(starts[kind, p], starts[kind, p + 1]):
            mine[kind, g - starts[kind, p]] = first[kind, g] - begin
        for i in range(count):
            own[kind, i] = group[kind, begin + i] - starts[kind, p]
    return members[:, begin : begin + count] - begin, mine, own


@compiled
def think_kernel(x, given, layout, weights, sums, states, logit, kept):
    """All iterations of a puzzle, then the next puzzle: what they need stays in the core's cache."""
    both, heard, out, gain, shift, head, head_bias = weights
    best, winner, hidden, normed, scale = kept
    width, mlp, rows, places = len(gain), len(out), layout[3], layout[5]
    for p in range(len(rows) - 1):
        members, first, group = puzzle_of(layout, p)
        begin, end, place = rows[p], rows[p + 1], slice(KINDS * places[p], KINDS * places[p + 1])
        count, groups = end - begin, first.shape[1] - 1
        told, total = np.empty((count, both.shape[1]), np.float32), np.empty((count, width), np.float32)
        said, now = np.empty((KINDS, groups, mlp), np.float32), x[begin:end]
        for t in range(len(states)):
            at = min(t, len(hidden) - 1)
            best_ = best[at, place].reshape(KINDS, groups, width)
            winner_ = winner[at, place].reshape(KINDS, groups, width)
            hidden_ = hidden[at, begin:end]
            product(now, 0, both, told, 0, 0)
            max_kernel(told, members, first, sums, best_, winner_)
            for kind in range(KINDS):
                product(best_[kind], 0, heard[kind], said[kind], 0, 0)
            hear_kernel(told, given[begin:end], said, group, hidden_)
            total[:] = now[:, :width]
            product(hidden_, 0, out, total, 0, 1)
            now, mine = states[t, begin:end], logit[t, begin:end]
            read_kernel(total, gain, shift, head, head_bias, now, normed[at, begin:end], scale[at, begin:end], mine)
            share_kernel(mine, members, first, group, now)


@compiled
def think_gradient_kernel(x, layout, weights, sums, states, logit, kept, d_states, d_logit, gradients):
    best, winner, hidden, normed, scale = kept
    both, heard, out, gain, shift, head, _ = weights
    d_x, d_given, d_both, d_heard, d_out, d_rest = gradients
    width, mlp, rows, places = len(gain), len(out), layout[3], layout[5]
    out_back = out.T.copy()
    state_back, share_back = both[:width].T.copy(), both[width:, KINDS * width :].T.copy()
    heard_back = np.empty((KINDS, mlp, width), np.float32)
    for kind in range(KINDS):
        heard_back[kind] = heard[kind].T
    for p in range(len(rows) - 1):
        members, first, group = puzzle_of(layout, p)
        begin, end, place = rows[p], rows[p + 1], slice(KINDS * places[p], KINDS * places[p + 1])
        count, groups = end - begin, first.shape[1] - 1
        d_told, d_total = np.empty((count, both.shape[1]), np.float32), np.zeros((count, width), np.float32)
        d_said, d_best = np.empty((KINDS, groups, mlp), np.float32), np.empty((KINDS, groups, width), np.float32)
        d_state, d_share = np.empty((count, width), np.float32), np.empty((count, KINDS), np.float32)
        d_now = d_x[begin:end]
        d_now[:] = d_states[-1, begin:end]
        for t in range(len(states) - 1, -1, -1):
            best_ = best[t, place].reshape(KINDS, groups, width)
            winner_ = winner[t, place].reshape(KINDS, groups, width)
            mine, hidden_ = d_logit[t, begin:end], hidden[t, begin:end]
            share_gradient_kernel(d_now, states[t, begin:end], members, first, group, mine)
            read_gradient_kernel(
                d_now, mine, logit[t, begin:end], normed[t, begin:end], scale[t, begin:end],
                gain, shift, head, d_total, d_rest,
            )  # fmt: skip
            product(d_total, 0, out_back, d_told, KINDS * width, 0)
            add_product_transposed(hidden_, d_total, d_out)
            hear_gradient_kernel(d_told, hidden_, group, d_said, d_given[begin:end])
            for kind in range(KINDS):
                product(d_said[kind], 0, heard_back[kind], d_best[kind], 0, 0)
                add_product_transposed(best_[kind], d_said[kind], d_heard[kind])
            max_gradient_kernel(d_best, winner_, group, sums, d_told)
            add_product_transposed(x[begin:end] if t == 0 else states[t - 1, begin:end], d_told, d_both)
            product(d_told, 0, state_back, d_state, 0, 0)
            product(d_told, KINDS * width, share_back, d_share, 0, 0)
            for i in range(count):
                for j in range(width):
                    d_now[i, j] = d_state[i, j]
                for j in range(KINDS):
                    d_now[i, width + j] = d_share[i, j]
            if t > 0:
                d_now += d_states[t - 1, begin:end]
        d_now[:, :width] += d_total


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


def room(*shapes):
    """Memory for what a gradient will need, used again by the thread's next one: new memory costs more than its use."""
    free = vars(buffers).setdefault("free", [])
    found = free.pop() if free else [torch.empty(0) for _ in shapes]
    sizes = [math.prod(shape) for shape in shapes]
    found = [part if len(part) >= size else torch.empty(size + size // 4) for part, size in zip(found, sizes)]
    return found, [part[:size].view(shape) for part, size, shape in zip(found, sizes, shapes)]


def shard(size, device):
    """Puzzles to work on at a time: on a CPU as many as one thread takes, `size`; a GPU takes all of them at once."""
    return size if device.type == "cpu" else 1_000_000


def obeys_rules(puzzle, logits):
    """bool [n], on any device: whether the likeliest digits and the clues [n, 81] fill every row, column and box."""
    digit = torch.where(puzzle > 0, puzzle, logits.argmax(-1).to(puzzle.dtype) + 1)
    bits = (1 << digit.long()).view(-1, 9, 9)
    sums = bits.sum(2), bits.sum(1), bits.view(-1, 3, 3, 3, 3).sum((2, 4)).flatten(1)
    return (torch.cat(sums, 1) == 0b1111111110).all(1)  # nine powers of two have this sum only if all nine differ


def fewest(alive):
    """Which candidates, bool [729], are in the open cells that have the fewest."""
    count = alive.reshape(81, 9).sum(1).repeat(9)
    return alive & (count == count[count > 1].min(initial=10))


def first_costs(effort, true):
    """[729]: the guesses to expect where each candidate is the first to be supposed in its cell: its own effort, and if
    it is not true that of the others."""
    of_cell = effort.reshape(81, 9).sum(1).repeat(9)
    return effort + (1 - true) * (of_cell - effort)


def keep_only(alive, candidate):
    """Take the other candidates of its cell out of alive [729]."""
    begin = candidate // 9 * 9
    alive[begin : begin + 9] = False
    alive[candidate] = True


def think(count, board, x, *weights):
    """As `think_anywhere`, on a CPU by the kernels above."""
    if x.device.type == "cpu" and x.dtype == torch.float32:
        return Think.apply(torch.is_grad_enabled(), count, board, x, *weights)
    return think_anywhere(count, board, x, *weights)


def think_anywhere(count, board, x, given, message, state, heard, out, gain, shift, head, head_bias, sums=0):
    """`count` iterations: messages to the groups, the largest of each group, an MLP, a residual and a norm.

    The last `sums` numbers of a message are added up over the group instead.

    x [candidates, width + 4]: the state, and after it the share in each group (a softmax of the members' logits).
    given [candidates, mlp]: what else a candidate sees, the same all the time, already multiplied by its matrix.
    -> x after each iteration, and the logits
    """
    width, limit, found = len(message), float(LIMIT), []
    kind = torch.arange(KINDS, device=x.device)[:, None]
    at = (board.index + kind * board.groups).T.ravel()  # the four groups of each candidate, of all kinds in one row
    for _ in range(count):  # few calls: each costs a GPU more than its work; index_select, whose gradient sorts nothing
        said = (x[:, :width] @ message).view(-1, width)
        none = x.new_zeros(KINDS * board.groups, width)  # for a kind that has fewer groups than another
        best = none.scatter_reduce(0, at[:, None].expand(-1, width), said, "amax", include_self=False)
        if sums:
            best = torch.cat([best[:, :-sums], none.index_add(0, at, said)[:, -sums:]], 1)
        groups = best.view(KINDS, -1, width) @ heard.view(KINDS, width, -1)
        hidden = groups.flatten(0, 1).index_select(0, at).view(len(x), KINDS, len(out)).sum(1)
        hidden = torch.addmm(given, x, state) + hidden
        h = F.layer_norm(torch.addmm(x[:, :width], hidden.relu(), out), (width,), gain, shift)
        logit = limit * torch.tanh(F.linear(h, head, head_bias).squeeze(1) / limit)
        exp = logit.exp()[:, None].expand(-1, KINDS)
        total = exp.new_zeros(KINDS * board.groups).index_add(0, at, exp.ravel())
        x = torch.cat([h, exp / total.index_select(0, at).view(-1, KINDS)], 1)
        found.append((x, logit))
    return tuple(torch.stack(part) for part in zip(*found))


class Think(torch.autograd.Function):
    """The same by kernels; `keep`: whether there will be a gradient."""

    @staticmethod
    def forward(
        context, keep, count, board, x, given, message, state, heard, out, gain, shift, head, head_bias, sums=0
    ):
        width, (rows, groups) = len(message), (len(x), KINDS * int(board.layout[-1][-1]))
        # one product for both; the messages do not see the shares
        both, slots = torch.cat([F.pad(message, (0, 0, 0, KINDS)), state], 1), count if keep else 1
        messages, states = (slots, groups, width), (slots, rows, width)
        memory, kept = room(messages, messages, (slots, rows, len(out)), states, (slots, rows))
        kept = tuple(part.view(torch.int32 if i == 1 else torch.float32).numpy() for i, part in enumerate(kept))
        weights = both, heard.view(KINDS, width, -1), out, gain, shift, head.ravel()
        weights = *(part.detach().contiguous().numpy() for part in weights), np.float32(head_bias.item())
        states, logit = x.new_empty(count, rows, width + KINDS), x.new_empty(count, rows)
        x, given = (part.detach().contiguous() for part in (x, given))
        think_kernel(x.numpy(), given.numpy(), board.layout, weights, sums, states.numpy(), logit.numpy(), kept)
        context.sums = sums
        if keep:
            context.memory, context.kept, context.weights, context.board, context.x = memory, kept, weights, board, x
            context.save_for_backward(states, logit)
        else:
            buffers.free.append(memory)
        return states, logit

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context, d_states, d_logit):
        states, logit = (part.numpy() for part in context.saved_tensors)
        memory, context.memory = context.memory, None
        if memory is None:
            raise RuntimeError("Think keeps what a gradient needs for one backward pass: call it again for another")
        both, heard, out, gain, *_ = context.weights
        given = np.zeros((states.shape[1], len(out)), np.float32)
        gradients = np.empty(states.shape[1:], np.float32), given, *map(np.zeros_like, (both, heard, out))
        gradients += (np.zeros((4, len(gain)), np.float32),)
        think_gradient_kernel(
            context.x.numpy(), context.board.layout, context.weights, context.sums, states, logit, context.kept,
            d_states.contiguous().numpy(), d_logit.clone(memory_format=torch.contiguous_format).numpy(), gradients,
        )  # fmt: skip
        buffers.free.append(memory)
        d_x, d_given, d_both, d_heard, d_out, rest = (torch.from_numpy(part) for part in gradients)
        width = len(gain)
        d_message, d_state = d_both[:width, : KINDS * width], d_both[:, KINDS * width :]
        return (None, None, None, d_x, d_given, d_message, d_state, d_heard.view(KINDS * width, -1), d_out,
                rest[0], rest[1], rest[2:3], rest[3, :1], None)  # fmt: skip


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


@compiled
def alive_kernel(puzzle, table, out):
    """out [n, 729]: whether no clue rules the candidate out, and its cell is blank."""
    for n in range(len(puzzle)):
        taken = np.zeros((len(table), 81), np.bool_)
        for cell in range(81):
            if puzzle[n, cell] > 0:
                for kind in range(len(table)):
                    taken[kind, table[kind, cell * 9 + puzzle[n, cell] - 1]] = True
        for c in range(729):
            out[n, c] = True
            for kind in range(len(table)):
                out[n, c] &= not taken[kind, table[kind, c]]


@compiled
def arrange_kernel(puzzles, puzzle, candidate, table):
    """Numbers the groups that have members. -> group, members, first, sizes, and where each puzzle's part begins"""
    kinds, count = len(table), len(puzzle)
    group, members = np.empty((kinds, count), np.int64), np.empty((kinds, count), np.int64)
    first, sizes = np.full((kinds, 81 * puzzles + 1), count), np.empty((count, kinds), np.float32)
    rows, starts = np.searchsorted(puzzle, np.arange(puzzles + 1)), np.zeros((kinds, puzzles + 1), np.int64)
    for kind in range(kinds):
        number = 0
        for p in range(puzzles):
            amount, name = np.zeros(81, np.int64), np.empty(81, np.int64)
            for i in range(rows[p], rows[p + 1]):
                amount[table[kind, candidate[i]]] += 1
            at = rows[p]
            for g in range(81):
                name[g] = number
                if amount[g]:
                    first[kind, number] = at
                    at, number = at + amount[g], number + 1
            cursor = first[kind, name]
            for i in range(rows[p], rows[p + 1]):
                g = table[kind, candidate[i]]
                group[kind, i], sizes[i, kind] = name[g], np.float32(amount[g]) / np.float32(9)
                members[kind, cursor[g]] = i
                cursor[g] += 1
            starts[kind, p + 1] = number
    return group, members, first[:, : starts[:, -1].max() + 1].copy(), sizes, rows, starts


class Board:
    """The candidates of a few puzzles that no clue rules out, and who shares a group with whom.

    `sizes` and `index`, which every iteration needs, are on the given device, all else on the CPU.
    """

    def __init__(self, puzzle, device="cpu"):
        alive = np.empty((len(puzzle), 729), bool)
        alive_kernel(puzzle, GROUP, alive)
        self.arrange(alive, device)

    @classmethod
    def of(cls, alive):
        """The board of these candidates, bool [n, 729]; a cell with one candidate left counts as filled."""
        board = cls.__new__(cls)
        open_ = alive.reshape(-1, 81, 9).sum(2) > 1
        board.arrange(alive & open_.repeat(9, 1))
        return board

    def arrange(self, alive, device="cpu"):
        self.puzzles, self.place = len(alive), np.nonzero(alive)  # puzzle, candidate
        self.group, self.members, self.first, sizes, rows, starts = arrange_kernel(self.puzzles, *self.place, GROUP)
        self.groups = self.first.shape[1] - 1  # as many of each kind, unless the clues contradict
        self.sizes, self.index = (torch.from_numpy(part).to(device) for part in (sizes, self.group))
        places = np.concatenate([[0], np.diff(starts).max(0, initial=0).cumsum()])  # of puzzles, in what Think keeps
        self.layout = self.members, self.first, self.group, rows, starts, places

    def flat(self):
        """The place of each candidate as one rising number."""
        return 729 * self.place[0] + self.place[1]

    def dense(self, numbers):
        """[puzzles, 729, width] from [candidates, width]."""
        out = numbers.new_zeros(self.puzzles, 729, numbers.shape[1])
        out[self.place] = numbers
        return out

    def logits(self, x, puzzle):
        """[..., n, 81, 9] from one number a candidate, [..., candidates]; what is ruled out gets a probability of 0."""
        out = torch.from_numpy(np.where(puzzle[:, CELL] == DIGIT + 1, 0.0, -1e4).astype(np.float32)).to(x.device)
        out = out.expand(*x.shape[:-1], -1, -1).clone()
        out[..., torch.from_numpy(self.place[0]), torch.from_numpy(self.place[1])] = x
        return out.unflatten(-1, (81, 9))
