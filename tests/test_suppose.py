"""What exp_suppose.py is named after: it explores a supposition, goes back, and sees where it led."""

import numpy as np
import pytest
import torch

import common
import exp_suppose as experiment
from data import generate
from exp_suppose import BITS, EXPLORE, MERGE, PLAIN
from plumbing import candidates


@pytest.fixture(scope="module")
def puzzles():
    return generate.generate(20, clues="minimal", seed=4, progress=False).rows(np.arange(20))


def small(**changes):
    torch.manual_seed(0)
    config = common.with_preset(experiment.Config(), "smoke")
    for name, value in ({"width": 8, "mlp": 12, "plain": 4, "explore": 3, "merge": 2} | changes).items():
        setattr(config, name, value)
    model = experiment.Model(config)
    torch.nn.init.normal_(model.supposed, std=0.5)  # it starts at 0: without this nothing that is supposed counts
    return config, model


def test_phases():
    _, model = small()
    phase, begins = model.phases(torch.arange(12))
    assert phase.tolist()[:4] == 4 * [PLAIN]
    assert phase.tolist()[4:12] == [EXPLORE] * 3 + [MERGE] * 2 + [EXPLORE] * 3
    assert np.flatnonzero(begins).tolist() == [4, 7, 9]


def run(model, puzzles, count):
    """The shard before each iteration, and after the last."""
    shard, found = model.start_shard(torch.from_numpy(puzzles)), []
    with torch.no_grad():
        for _ in range(count):
            found.append(shard)
            *_, shard = model.think_shard(shard, 1)
    return [*found, shard]


def test_it_marks_a_promising_candidate_and_what_it_excludes(puzzles):
    _, model = small()
    at = run(model, puzzles[0][:3], 6)
    _, board, _, mind, clock = at[5]
    for n in range(3):
        rows = np.flatnonzero(board.place[0] == n)
        p = at[4][2][rows, -candidates.KINDS]
        group = candidates.GROUP[:, board.place[1][rows]]
        peers = [(group == group[:, [row]]).any(0) & (np.arange(len(rows)) != row) for row in range(len(rows))]
        decides = [float(((p * (1 - p)) ** 2)[mine].sum()) for mine in peers]
        chosen = rows[int((p**2 * (1 - p) * torch.tensor(decides)).argmax())]
        assert clock[n, 1] == board.place[1][chosen]
        same = peers[chosen - rows[0]]
        assert mind[rows, 0].numpy().nonzero()[0].tolist() == [chosen - rows[0]]
        assert (mind[rows, 1].numpy() == same).all()
        assert (mind[rows, 2] == 1).all() and (mind[rows, 3] == 0).all()
    assert (at[4][3] == 0).all(), "nothing is supposed before"


def test_what_is_likely_and_decides_most_is_promising():
    """Of three candidates of a cell, two of another, and one without peers."""
    number = np.array([0, 1, 2, 9 * 40, 9 * 40 + 1, 9 * 80 + 5])

    def chosen(share, tried=(0, 0, 0, 0, 0, 0)):
        share, tried = (np.array(numbers, np.float32) for numbers in (share, tried))
        return experiment.most_promising(share, tried, number, 0)

    assert chosen([0.6, 0.4, 0.0, 0.5, 0.5, 0.5]) == 0, "the likelier of two; the last one has no peer"
    assert chosen([0.5, 0.2, 0.2, 0.5, 0.5, 0.0]) in (3, 4), "a peer much in doubt counts more than two that are less"
    assert chosen([0.6, 0.4, 0.0, 0.5, 0.5, 0.5], [1, 1, 0, 0, 0, 0]) in (3, 4), "tried before"
    assert chosen([1.0, 0.0, 0.0, 0.9, 0.1, 0.5]) == 3, "no doubt, nothing to suppose"


def test_a_board_without_blanks_supposes_nothing(puzzles):
    _, model = small()
    boards = np.concatenate([puzzles[1][:1], puzzles[0][:10]])
    with torch.no_grad():
        *_, last = model(torch.from_numpy(boards), 12)
    assert (last[0].argmax(-1).numpy() + 1 == boards[0]).all()


def test_it_goes_back_and_sees_where_the_supposition_led(puzzles):
    _, model = small()
    at = run(model, puzzles[0][:3], 8)
    width = 8
    before, explored, merging = at[4], at[7], at[8]
    with torch.no_grad():
        turned = model.turn(explored, experiment.most_promising)
    assert torch.equal(turned[2], before[2]), "the state from before"
    assert torch.equal(turned[3][:, BITS : BITS + width], explored[2][:, :width]), "and where the supposition led"
    assert (turned[3][:, 3] == 1).all() and (turned[3][:, 2] == 0).all()
    assert not torch.equal(explored[2], before[2])
    model.supposed.data[BITS:] = 0
    assert not torch.equal(run(model, puzzles[0][:3], 8)[8][2], merging[2]), "it takes notice"


def test_it_supposes_something_else_the_next_time(puzzles):
    _, model = small()
    clocks = [shard[-1][:, 1].tolist() for shard in run(model, puzzles[0][:4], 30)]
    for n in range(4):
        supposed = [clocks[i][n] for i in (5, 10, 15, 20)]
        assert len(set(supposed)) >= 3


def test_a_test_in_shards_is_the_plain_loop(puzzles):
    """Solved puzzles leave, the others are regrouped, and nothing changes for them."""
    _, model = small()
    solution = torch.from_numpy(puzzles[1].astype(np.int64))
    puzzle = torch.from_numpy(puzzles[0].astype(np.int64))
    puzzle[3] = torch.where(torch.arange(81) == int((puzzle[3] == 0).nonzero()[0]), puzzle[3], solution[3])
    with torch.no_grad():
        quick = list(model(puzzle, 20))
        for n in (0, 3, 11):
            state, done = model.start(puzzle[n : n + 1]), None
            for got in quick:
                logits, state = model.iterate(state)
                logits = logits if done is None else done
                if done is None and candidates.obeys_rules(puzzle[n : n + 1], logits).all():
                    done = logits
                assert torch.allclose(got[n], logits[0], atol=1e-4)
            assert (done is not None) == (n == 3), "one blank is solved at once, the untrained network solves no other"


def test_a_false_supposition_teaches_nothing_but_the_verdict(puzzles):
    config, model = small(verdict=0.0, depth=1, batch=4)
    slots = experiment.Slots(config, experiment.numbers(config.width))
    slots.puzzle[:], slots.solution[:] = (torch.from_numpy(part[:4]) for part in puzzles)
    slots.clock[:, 0], slots.free[:] = config.plain, False
    slots.memory[:, :, : config.width] = model.first_state()[: config.width].detach()
    losses = {}
    for share in (0.0, 1.0):
        config.supposed_true = share
        kept = slots.memory.clone(), slots.clock.clone()
        losses[share] = [
            experiment.shard_gradients(model, config, slots, 1, step, slice(0, 4))[0].item() for step in (1, 2, 3)
        ]
        slots.memory, slots.clock = kept
    assert all(loss > 0 for loss in losses[1.0])
    assert sum(losses[0.0]) < 0.9 * sum(losses[1.0]), "puzzles with a false supposition are left out"
    config.verdict, config.supposed_true = 1.0, 1.0
    names = [name for name, _ in model.named_parameters()]
    gradient = experiment.shard_gradients(model, config, slots, 1, 1, slice(0, 4))[1][names.index("verdict.weight")]
    assert gradient.abs().sum() > 0


def test_hard_puzzles_come_in_over_the_first_third(puzzles):
    config, _ = small(batch=400, steps=300, hard_share=0.6)
    data = common.load(config, type("Run", (), {"rank": 0, "world": 1})())
    slots = experiment.Slots(config, 4)
    hard = {row.tobytes() for row in data.train.table["solution"][data.train.rating == 1]}
    share = []
    for step in (0, 50, 100, 299):
        slots.free[:] = True
        slots.refill(config, data, step)
        share.append(np.mean([row.numpy().tobytes() in hard for row in slots.solution]))
    assert share == pytest.approx([0, 0.3, 0.6, 0.6], abs=0.08)
