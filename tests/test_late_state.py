"""The log's transformer with a norm between its iterations, and trained from late states."""

import pytest
import torch
import torch.nn.functional as F

import common
import exp_cosine_no_sam
import exp_late_state
import exp_stable_puzzle
import exp_stable_recurrence
from data import generate

SIZES = {"width": 16, "layers": 1, "heads": 2, "mlp": 16, "iterations": 3, "dropout": 0.0}


@pytest.fixture(scope="module")
def batch():
    puzzle, solution = (
        torch.from_numpy(part) for part in generate.cached(4, clues=30, seed=3, progress=False).rows(range(4))
    )
    target = torch.where(puzzle == 0, solution.long() - 1, common.IGNORED)
    return common.Batch(puzzle.long(), target, None, int((puzzle == 0).sum()))


def built(experiment, **changes):
    torch.manual_seed(0)
    config = experiment.Config(**(SIZES | changes))
    return config, experiment.Model(config)


def test_the_state_has_the_same_size_after_every_iteration(batch):
    """The parent's grows with each."""
    sizes = {}
    for experiment in (exp_cosine_no_sam, exp_stable_recurrence):
        _, model = built(experiment)
        state, sizes[experiment] = model.start(batch.puzzle), []
        for _ in range(20):
            logits, state = model.iterate(state)
            sizes[experiment].append(state[0].std(-1).mean().item())
    grown, stable = (sizes[e] for e in (exp_cosine_no_sam, exp_stable_recurrence))
    assert grown[-1] > 1.5 * grown[0]
    assert stable == pytest.approx([1.0] * 20, abs=0.05)
    assert torch.allclose(logits, model.head(state[0])), "the head reads the normed state"
    _, model = built(exp_stable_recurrence)
    with torch.no_grad():
        model.norm.weight.fill_(3)
    assert model.iterate(model.start(batch.puzzle))[1][0].std(-1).mean().item() == pytest.approx(3, abs=0.2)


def test_the_puzzle_is_seen_in_every_iteration(batch):
    """The parent sees it in the first state only."""
    for experiment, seen in ((exp_stable_recurrence, False), (exp_stable_puzzle, True)):
        _, model = built(experiment)
        one, other = model.start(batch.puzzle), model.start(batch.puzzle.flip(0))
        mixed = (*one[:2], *other[2:])  # a state reached on one puzzle, and another puzzle in view
        (a, _), (b, _) = model.iterate(one), model.iterate(mixed)
        assert torch.equal(a, b) == (not seen)
    h, predictions, puzzle = one
    torch.manual_seed(0)
    plain = exp_stable_recurrence.Model(exp_stable_recurrence.Config(**SIZES))
    assert torch.equal(a, plain.iterate((h + puzzle, predictions))[0])


def test_the_loss_of_late_iterations_has_a_gradient_through_them_only(batch):
    config, model = built(exp_late_state)
    for late in (0, 2, 5):
        loss, last = exp_late_state.forward_loss(model, batch, late, config)
        state, expected = model.start(batch.puzzle), 0
        for _ in range(late):
            _, (h, predictions) = model.iterate(state)
            state = h.detach(), predictions.detach()
        for _ in range(config.iterations):
            logits, state = model.iterate(state)
            entropy = F.cross_entropy(logits.flatten(0, 1), batch.target.flatten(), reduction="sum")
            expected = expected + entropy / batch.blanks / config.iterations
        assert torch.allclose(loss, expected) and torch.equal(last, logits)
        weights = list(model.parameters())
        found, wanted = (torch.autograd.grad(part, weights, allow_unused=True) for part in (loss, expected))
        for a, b in zip(found, wanted, strict=True):
            assert (a is None) == (b is None) and (a is None or torch.allclose(a, b, atol=1e-6))
        assert (found[0] is None) == (late > 0), "the puzzle is encoded in the first state only"


def test_every_second_step_of_the_second_half_begins_from_a_late_state(clean, monkeypatch):
    begun = []

    def forward_loss(model, batch, late, config, real=exp_late_state.forward_loss):
        begun.append(late)
        return real(model, batch, late, config)

    monkeypatch.setattr(exp_late_state, "forward_loss", forward_loss)
    exp_late_state.main(["--preset", "smoke", "--steps", "16", "--iterations", "4", "--evaluate-every", "99"])
    assert begun == 8 * [0] + [0, 8, 0, 12, 0, 4, 0, 8]
