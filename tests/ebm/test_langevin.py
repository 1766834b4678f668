"""The energies against hand-worked values and finite differences; the solver against its definition, step by step."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ebm import langevin
from ebm.train import Model, configured
from tests.data import puzzles


def tiny(run=4):
    torch.manual_seed(0)
    return Model(configured(run, "smoke")).eval()


def boards(count, clues=30, seed=0):
    """(puzzle, solution), int64 [count, 81]"""
    found = puzzles.make(count, seed, clues).rows(np.arange(count))
    return [torch.from_numpy(board.astype(np.int64)) for board in found]


def state(model, count=3, dtype=torch.float32):
    """(puzzle, z_context, z) at a random z"""
    puzzle = boards(count)[0]
    z = torch.randn(count, model.config.latent, dtype=dtype, generator=torch.Generator().manual_seed(1))
    return puzzle, model.context(puzzle).detach(), z


# ---------------------------------------------------------------- energies


class Worked:
    """A model whose energy can be worked out by hand: it predicts 2 z and decodes a board that is always the same."""

    def __init__(self, board):
        self.board = board

    def predict(self, z_context, z):
        return 2 * z

    def target(self, board):
        return board.sum((1, 2))[:, None] / 81 + torch.tensor([[0.0, 2.0]])  # a board of probabilities has sum 81

    def decode(self, z_context, z, puzzle):
        return 1e6 * F.one_hot(self.board - 1, 9).float()


def test_energies_worked_out_by_hand():
    solution = boards(1)[1]
    wrong = solution.clone()
    wrong[0, 0] = wrong[0, 0] % 9 + 1  # its row, column and box each have one digit twice and lack one: 3 x 2
    z, tau = torch.tensor([[1.0, 3.0]]), 0.25  # predicted (2, 6), target (1, 3); the penalty's weight is 2.5
    for board, penalty in ((solution, 0.0), (wrong, 6.0)):
        for kind, first in (("consistency", 1 + 9), ("norm", 4 + 36), ("penalty", 0)):
            terms = langevin.energy(Worked(board), solution, None, z, tau, kind)
            assert terms["penalty"].item() == pytest.approx(penalty)
            assert terms["total"].item() == pytest.approx(first + 2.5 * penalty)
            assert kind == "penalty" or terms[kind].item() == pytest.approx(first)
    assert [langevin.penalty_weight(tau) for tau in (1.0, 0.5, 0.0)] == [1, 2, 3]


def test_an_unknown_energy_is_refused():
    model = tiny()
    with pytest.raises(ValueError, match=r"'free'.*consistency, norm, penalty"):
        langevin.energy(model, *state(model), 1.0, "free")


@pytest.mark.parametrize("kind", ["consistency", "norm", "penalty"])
def test_gradients_are_finite_differences(kind):
    model = tiny().double()
    puzzle, z_context, z = state(model, dtype=torch.float64)
    total = lambda z, tau: langevin.energy(model, puzzle, z_context, z, tau, kind)["total"]  # noqa: E731
    for tau in (1.0, 0.3):
        with langevin.frozen(model):
            (gradient,) = torch.autograd.grad(total(z.requires_grad_(), tau).sum(), z)
        for direction in torch.eye(z.shape[1], dtype=torch.float64):
            with torch.no_grad():
                slope = (total(z + 1e-5 * direction, tau) - total(z - 1e-5 * direction, tau)) / 2e-5
            torch.testing.assert_close(gradient @ direction, slope, rtol=1e-5, atol=1e-7)
    assert gradient.abs().max() > 1e-4  # and there is a slope at all


# ---------------------------------------------------------------- the solver


def by_definition(model, puzzle, number, steps, chains, lr, scale, kind, seed):
    """Chain `number` of one puzzle [1, 81], written out: the states, the energies before each step, the last logits."""
    noise = lambda step: langevin.normal(puzzle, chains, model.config.latent, seed, step)[:, number]  # noqa: E731
    z, z_context, energies = noise(0), model.context(puzzle).detach(), []
    states = [z]
    for t in range(steps):
        tau = 1 - t / steps
        z = z.detach().requires_grad_()
        total = langevin.energy(model, puzzle, z_context, z, tau, kind)["total"]
        (gradient,) = torch.autograd.grad(total.sum(), z)
        z = (z - lr * gradient + scale(tau) * noise(t + 1)).detach()
        energies.append(total.item())
        states.append(z)
    return torch.cat(states), energies, model.decode(z_context, z, puzzle).detach()


@pytest.mark.parametrize("kind", ["consistency", "norm"])
@pytest.mark.parametrize("true_noise", [False, True])
def test_chains_follow_the_definition(kind, true_noise):
    model, puzzle = tiny(), boards(2)[0]
    scale = (lambda tau: 0.02**0.5) if true_noise else (lambda tau: 0.005 * tau)
    found = langevin.solve(model, puzzle, 4, 3, kind=kind, seed=7, true_noise=true_noise, capture=True)
    assert found.logits.shape == (2, 3, 81, 9) and found.boards.shape == (2, 3, 81) and found.energy.shape == (2, 3)
    for i in range(2):
        for k in range(3):
            states, energies, logits = by_definition(model, puzzle[i : i + 1], k, 4, 3, 0.01, scale, kind, 7)
            torch.testing.assert_close(found.trajectory.z[:, i, k], states)
            torch.testing.assert_close(found.trajectory.terms["total"][:, i, k], torch.tensor(energies))
            torch.testing.assert_close(found.logits[i, k], logits[0])
            assert found.energy[i, k].item() == pytest.approx(energies[-1])  # before the last step
            assert torch.equal(found.boards[i, k], logits[0].argmax(-1) + 1)  # after it


def test_results_depend_on_neither_order_nor_company_nor_batches():
    model, puzzle = tiny(), boards(5)[0]
    whole = langevin.solve(model, puzzle, 3, 4, capture=True)
    order = torch.tensor([3, 0, 4, 1, 2])
    turned = langevin.solve(model, puzzle[order], 3, 4)
    for other, rows in ((turned, order), (langevin.solve(model, puzzle[2:3], 3, 4), [2])):
        torch.testing.assert_close(other.logits, whole.logits[rows])
        torch.testing.assert_close(other.energy, whole.energy[rows])
    for at_once in (1, 3, 7, 19):  # also where a puzzle's chains are parted
        parts = langevin.solve(model, puzzle, 3, 4, capture=True, at_once=at_once)
        torch.testing.assert_close(parts.trajectory.z, whole.trajectory.z)
        torch.testing.assert_close(parts.trajectory.probabilities, whole.trajectory.probabilities)
        torch.testing.assert_close(parts.logits, whole.logits)
        start = langevin.normal(puzzle, 4, model.config.latent, 0, 0)
        assert torch.equal(langevin.read(model, puzzle, start, at_once), langevin.read(model, puzzle, start))
    fewer = langevin.solve(model, puzzle, 3, 2)
    torch.testing.assert_close(fewer.logits, whole.logits[:, :2])  # a chain does not know how many there are


def test_seeds():
    model, puzzle = tiny(), boards(2)[0]
    first, again, other = (langevin.solve(model, puzzle, 2, 2, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.logits, again.logits) and not torch.allclose(first.logits, other.logits)
    draws = [langevin.normal(puzzle, 2, 500, 0, step) for step in (0, 1)]
    rows = torch.cat(draws).flatten(0, 1)  # 2 puzzles x 2 chains x 2 steps
    assert (torch.corrcoef(rows) - torch.eye(8)).abs().max() < 0.2  # none is another's copy
    assert rows.mean().abs() < 0.05 and abs(rows.std() - 1) < 0.05


def test_at_most_so_many_chains_at_once(monkeypatch):
    model, puzzle, seen = tiny(), boards(5)[0], []
    decode = model.decode
    monkeypatch.setattr(model, "decode", lambda c, z, p: seen.append(len(z)) or decode(c, z, p))
    langevin.solve(model, puzzle, 2, 3, at_once=4)
    assert max(seen) == 4 and sum(seen) == 5 * 3 * (2 + 1)
    seen.clear()
    langevin.read(model, puzzle, torch.zeros(5, 3, model.config.latent), at_once=4)
    assert max(seen) == 4 and sum(seen) == 5 * 3


def test_trajectory():
    model, puzzle = tiny(), boards(2)[0]
    found = langevin.solve(model, puzzle, 3, 2, capture=True)
    path = found.trajectory
    assert path.z.shape == (4, 2, 2, model.config.latent) and path.probabilities.shape == (4, 2, 2, 81, 9)
    assert {name: tuple(term.shape) for name, term in path.terms.items()} == dict.fromkeys(
        ("consistency", "penalty", "total"), (3, 2, 2)
    )
    weights = torch.tensor([1, 1 + 2 / 3, 1 + 4 / 3])[:, None, None]
    torch.testing.assert_close(path.terms["total"], path.terms["consistency"] + weights * path.terms["penalty"])
    start = langevin.normal(puzzle, 2, model.config.latent, 0, 0)
    assert torch.equal(path.z[0], start)  # the state before any update is part of it
    torch.testing.assert_close(path.probabilities[-1], found.logits.softmax(-1))
    assert torch.equal(path.z[-1], found.z)
    measured = langevin.measure(model, puzzle, path.z[2], tau=1 / 3, at_once=3)
    torch.testing.assert_close(measured, {name: term[2] for name, term in path.terms.items()})
    torch.testing.assert_close(measured["total"], found.energy)
    assert torch.equal(path.probabilities[0].argmax(-1) + 1, langevin.read(model, puzzle, start).long())
    assert langevin.solve(model, puzzle, 3, 2).trajectory is None


def test_start_at_a_given_z():
    model, puzzle = tiny(), boards(2)[0]
    start = torch.randn(2, 2, model.config.latent)
    found = langevin.solve(model, puzzle, 1, 2, lr=0.0, noise=0.0, start=start, capture=True)
    assert torch.equal(found.trajectory.z[0], start) and torch.equal(found.trajectory.z[1], start)


def test_energy_falls():
    found = langevin.solve(tiny(), boards(4)[0], 30, 2, lr=1e-3, noise=0.0, kind="norm", capture=True)
    norm = found.trajectory.terms["norm"] + found.trajectory.terms["penalty"]
    assert (norm[-1] < norm[0]).all()


def test_clues_stay():
    model, (puzzle, _) = tiny(), boards(3)
    found = langevin.solve(model, puzzle, 3, 2, lr=10.0, true_noise=True)  # far from any sensible z
    clue = (puzzle > 0)[:, None].expand_as(found.boards)
    assert torch.equal(found.boards[clue], puzzle[:, None].expand_as(found.boards)[clue])
    assert found.boards.min() >= 1 and found.boards.max() <= 9


def test_the_model_is_left_as_it_was():
    model = tiny().train()
    wanted = [p.requires_grad for p in model.parameters()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first = langevin.solve(model, boards(1)[0], 2, 2)
    assert torch.equal(first.logits, langevin.solve(model, boards(1)[0], 2, 2).logits)  # no dropout in there
    with torch.no_grad():  # as a caller may have it
        assert torch.equal(first.logits, langevin.solve(model, boards(1)[0], 2, 2).logits)
    assert model.training and [p.requires_grad for p in model.parameters()] == wanted
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with langevin.frozen(model):
        assert not model.training and not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"chains": 0}, {"at_once": 0}])
def test_nothing_to_do_is_an_error(wrong):
    with pytest.raises(ValueError, match="expected 1 or more"):
        langevin.solve(tiny(), boards(1)[0], **wrong)


# ---------------------------------------------------------------- choice


def test_choice_among_chains():
    right = boards(1)[1].numpy()[0]
    chains = np.tile(right, (4, 1))
    chains[0, :3] = right[:3] % 9 + 1  # three cells wrong
    chains[1, 0] = right[0] % 9 + 1  # one, the same as in chain 0
    chains[2] = right % 9 + 1  # obeys all rules, and every cell is wrong
    chains[3, 80] = right[80] % 9 + 1  # another one
    found = langevin.choose(chains[None], np.array([[5.0, np.nan, 1.0, 2.0]]))
    assert list(found) == ["one", "energy", "rules", "majority"]
    assert (found["one"] == chains[0]).all() and (found["energy"] == chains[2]).all()
    assert (found["rules"] == chains[2]).all()
    voted = right.copy()
    voted[:3] = chains[0, :3]  # cell 0 by three votes; two against two elsewhere, where the first chain decides
    assert (found["majority"][0] == voted).all()
    assert list(langevin.choose(chains[None])) == ["one", "rules", "majority"]  # no energy, no choice by it
    assert (langevin.choose_by_oracle(chains[None], right[None]) == chains[1]).all()
    assert langevin.missing(right).tolist() == [0] * 27
    assert langevin.missing(chains[1]).tolist() == [int(group in (0, 9, 18)) for group in range(27)]


def test_choice_is_made_for_each_puzzle():
    boards = np.random.default_rng(0).integers(1, 10, (5, 3, 81))
    energy = np.random.default_rng(1).random((5, 3))
    found = langevin.choose(boards, energy)
    for i in range(5):
        assert (found["energy"][i] == boards[i, energy[i].argmin()]).all()
        assert (found["rules"][i] == boards[i, langevin.missing(boards[i]).sum(-1).argmin()]).all()
