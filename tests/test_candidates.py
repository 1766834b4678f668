"""The network that iterates: its kernels against plain torch, and the symmetries that it claims."""

import numpy as np
import pytest
import torch

import common
import exp_iterate
import lineage
from data import generate
from ebm import ours
from plumbing import disk
from plumbing.candidates import CELL, DIGIT, GROUP, KINDS, Board, Collect, Gather, LogSumExp, think, think_anywhere
from plumbing.product import add_product_transposed, product


@pytest.fixture(scope="module")
def puzzles():
    return generate.generate(6, clues=45, seed=3, progress=False).rows(np.arange(6))


@pytest.fixture(scope="module")
def board(puzzles):
    return Board(puzzles[0])


def same_as_plain(board, ours, plain, *shapes):
    inputs = [torch.randn(*shape, requires_grad=True) for shape in shapes]
    results = ours(*inputs), plain(*inputs)
    assert torch.allclose(*results, atol=1e-5)
    weight = torch.randn_like(results[0])
    gradients = [torch.autograd.grad((result * weight).sum(), inputs) for result in results]
    for a, b in zip(*gradients):
        assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("width, hidden, sums", [(6, 10, 0), (32, 96, 0), (32, 96, 8), (37, 70, 37)])
def test_the_fast_iterations_are_the_plain_ones(puzzles, width, hidden, sums):
    board, count = Board(puzzles[0][:3]), 3
    rows = len(board.place[0])
    shapes = (rows, width + KINDS), (rows, hidden), (width, KINDS * width), (width + KINDS, hidden)
    shapes += (KINDS * width, hidden), (hidden, width), (width,), (width,), (1, width), (1,)
    torch.manual_seed(0)
    given = [torch.randn(*shape) / shape[-1] ** 0.5 for shape in shapes]
    for part in given:
        part.requires_grad_()
    results = [way(count, board, *given, sums) for way in (think, think_anywhere)]
    weights = [torch.randn_like(result) for result in results[0]]
    assert [result.shape for result in results[0]] == [(count, rows, width + KINDS), (count, rows)]
    for fast, plain in zip(*results):
        assert torch.allclose(fast, plain, atol=1e-4)
    gradients = [torch.autograd.grad(sum((w * r).sum() for w, r in zip(weights, result)), given) for result in results]
    for fast, plain in zip(*gradients):
        assert torch.allclose(fast, plain, atol=1e-4 * plain.abs().max())
    for kind, share in enumerate(results[0][0][-1, :, -KINDS:].T):
        assert torch.allclose(
            share.new_zeros(board.groups).index_add(0, board.index[kind], share).max(), torch.ones(())
        )
    with torch.no_grad():
        for kept, forgotten in zip(results[0], think(count, board, *given, sums)):
            assert torch.equal(kept, forgotten)


@pytest.mark.parametrize("rows, terms, columns", [(1, 1, 1), (9, 5, 3), (13, 36, 37), (31, 7, 224), (8, 20, 100)])
def test_products(rows, terms, columns):
    random = np.random.default_rng(0)
    a, b = (random.normal(size=shape).astype(np.float32) for shape in ((rows, terms + 2), (terms, columns)))
    out = np.ones((rows, columns + 5), np.float32)
    for add in (0, 1):
        before = out.copy()
        product(a, 1, b, out, 3, add)
        assert np.allclose(out[:, 3:-2], a[:, 1:-1] @ b + add * before[:, 3:-2], atol=1e-4)
        assert (out[:, :3] == 1).all() and (out[:, -2:] == 1).all(), "the other columns stay"
    total = np.ones((terms + 2, columns), np.float32)
    right = random.normal(size=(rows, columns)).astype(np.float32)
    add_product_transposed(a, right, total)
    assert np.allclose(total, 1 + a.T @ right, atol=1e-4)


def test_log_sum_exp(board):
    def plain(x):
        parts = x.view(len(x), KINDS, 5).exp()
        sums = [x.new_zeros(board.groups, 5).index_add(0, index, parts[:, k]) for k, index in enumerate(board.index)]
        return torch.stack(sums).clamp(min=1e-20).log()

    same_as_plain(board, lambda x: LogSumExp.apply(x, board), plain, (len(board.place[0]), 5 * KINDS))


def test_second_derivatives(puzzles):
    """What an energy is made of is differentiated twice: for the descent, and for training through the descent."""
    board = Board(puzzles[0][:1])
    count = len(board.place[0])
    x = torch.randn(count, 2 * KINDS, dtype=torch.double, requires_grad=True)
    groups = torch.randn(KINDS, board.groups, 2, dtype=torch.double, requires_grad=True)
    for function, value in ((LogSumExp, x), (Gather, groups), (Collect, x)):
        assert torch.autograd.gradcheck(lambda v, function=function: function.apply(v, board), value)
        assert torch.autograd.gradgradcheck(lambda v, function=function: function.apply(v, board), value)
    assert LogSumExp.apply(torch.full((count, KINDS), 1e4), board).isfinite().all()


def test_collect(board):
    def plain(x):
        return torch.stack([x.new_zeros(board.groups, 5).index_add(0, index, x) for index in board.index])

    same_as_plain(board, lambda x: Collect.apply(x, board), plain, (len(board.place[0]), 5))


def test_a_board_has_the_candidates_that_no_clue_rules_out(puzzles, board):
    for n, candidate in [(0, c) for c in range(729)]:
        cell, digit = CELL[candidate], DIGIT[candidate] + 1
        row, column = divmod(cell, 9)
        grid = puzzles[0][n].reshape(9, 9)
        box = grid[row // 3 * 3 : row // 3 * 3 + 3, column // 3 * 3 : column // 3 * 3 + 3]
        alive = grid[row, column] == 0 and digit not in {*grid[row], *grid[:, column], *box.ravel()}
        assert alive == bool(((board.place[0] == n) & (board.place[1] == candidate)).any())


def test_groups_are_a_cell_and_a_digit_in_a_row_a_column_and_a_box():
    row, column, box = (place.numpy()[CELL] for place in common.places())
    for group, expected in zip(GROUP, (CELL, 9 * row + DIGIT, 9 * column + DIGIT, 9 * box + DIGIT), strict=True):
        assert (np.bincount(group) == 9).all()
        assert len({*zip(group, expected)}) == 81, "one group each"


def test_renamed_digits_and_swapped_lines_give_the_same_answer(puzzles):
    torch.manual_seed(0)
    model = exp_iterate.Model(common.with_preset(exp_iterate.Config(), "smoke"))
    puzzle = torch.from_numpy(puzzles[0].astype(np.int64))
    digits = torch.tensor([0, 4, 7, 1, 9, 2, 8, 3, 6, 5])
    lines = torch.tensor([4, 3, 5, 0, 2, 1, 8, 7, 6])
    moved = digits[puzzle.view(-1, 9, 9)[:, lines]].view(-1, 81)
    with torch.no_grad():
        plain, renamed = (list(model(p, 3))[-1] for p in (puzzle, moved))
    back = renamed.view(-1, 9, 9, 9)[:, lines.argsort()].view(-1, 81, 9)[..., digits[1:] - 1]
    blank = puzzle == 0
    assert torch.allclose(plain[blank], back[blank], atol=1e-4)


def test_clues_keep_their_digit(puzzles):
    model = exp_iterate.Model(common.with_preset(exp_iterate.Config(), "smoke"))
    puzzle = torch.from_numpy(puzzles[0].astype(np.int64))
    answer = next(model(puzzle, 1)).argmax(-1) + 1
    assert (answer[puzzle > 0] == puzzle[puzzle > 0]).all()


def test_muon_makes_steps_of_equal_singular_values_along_the_momentum():
    torch.manual_seed(0)
    for shape in ((16, 48), (48, 16)):
        weight, average = torch.nn.Parameter(torch.randn(shape)), torch.zeros(shape)
        optimizer = exp_iterate.Muon([weight], lr=0.1)
        for _ in range(3):
            before, weight.grad = weight.detach().clone(), torch.randn(shape)
            average = 0.95 * average + 0.05 * weight.grad
            optimizer.step()
            u, _, v = torch.linalg.svd(0.05 * weight.grad + 0.95 * average, full_matrices=False)
            step = (before - weight.detach()) / 0.1 / max(1, shape[0] / shape[1]) ** 0.5
            values = torch.diagonal(u.T @ step @ v.T)  # the singular vectors stay, the values come close to 1
            assert values.min() > 0.6 and values.max() < 1.3


@pytest.mark.parametrize(
    "experiment", [*map(lineage.module, lineage.ON_CANDIDATES), ours], ids=lambda one: one.__name__
)
def test_a_resumed_run_is_the_same_run(experiment, clean, monkeypatch):
    """The puzzles in training and the states reached on them come back with the checkpoint."""
    flags = ["--preset", "smoke", "--steps", "8", "--save-every", "4", "--easy-steps", "2", "--evaluate-every", "99"]
    flags += ["--device", "cpu"]  # bit for bit only there
    experiment.main([*flags, "--name", "whole"])

    def refill(self, config, data, step, real=experiment.Slots.refill):
        if step == 4:
            raise KeyboardInterrupt
        return real(self, config, data, step)

    with monkeypatch.context() as patch:
        patch.setattr(experiment.Slots, "refill", refill)
        patch.setattr(common.Run, "open_folder", keep_lock(opened := [], common.Run.open_folder))
        with pytest.raises(KeyboardInterrupt):
            experiment.main([*flags, "--name", "half"])
        opened[0].close()
    experiment.main([*flags, "--name", "half", "--resume"])
    whole, half = (
        disk.load_checkpoint(clean / f"runs/{experiment.__name__.rpartition('.')[2]}/{name}/checkpoint.pt")
        for name in ("whole", "half")
    )
    for name, value in whole["model"].items():
        assert torch.equal(value, half["model"][name]), name
    for all_of_it, resumed in zip(whole["optimizers"][2:], half["optimizers"][2:], strict=True):  # slots, live weights
        for name, value in all_of_it.items():
            assert torch.equal(*map(torch.as_tensor, (value, resumed[name]))), name


def keep_lock(opened, real):
    return lambda run: opened.append(run) or real(run)


def test_a_step_goes_on_from_the_states_reached(puzzles):
    config = common.with_preset(exp_iterate.Config(), "smoke")
    config.batch = 4
    torch.manual_seed(0)
    model, slots = exp_iterate.Model(config), exp_iterate.Slots(config, config.width + KINDS)
    slots.puzzle[:], slots.solution[:] = (torch.from_numpy(part[:4]) for part in puzzles)
    part, losses = slice(0, 4), []
    for free in (True, False, False):
        slots.free[:] = free
        loss, gradients, logits = exp_iterate.shard_gradients(model, config, slots, part, 100)
        losses.append(loss.item())
    state = model.start(slots.puzzle)
    for _ in range(3 * config.depth):
        expected, state = model.iterate(state)
    assert torch.allclose(logits, expected.detach(), atol=1e-5)
    assert len(set(losses)) == 3 and len(gradients) == len(list(model.parameters()))
