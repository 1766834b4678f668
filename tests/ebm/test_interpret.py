"""The interpretability study on trajectories, attention and models whose answer is known; and its command."""

import dataclasses
import json
import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from data import store
from ebm import evaluate, interpret, interpret_plots, langevin
from ebm.interpret import Observed, share
from ebm.strategies import LEVEL, NAMES, UNKNOWN
from ebm.train import Model, configured, load_model
from plumbing import disk
from tests.data import puzzles
from tests.ebm.test_strategies import PUZZLES, parse

COLUMNS = ("oracle", "z = 0", "z random", "Langevin")
NAKED, HIDDEN = NAMES.index("naked single"), NAMES.index("hidden single")
ASKED = interpret.Arguments("", steps=4, heads=3)


def model_of(**changes):
    """An untrained model whose decoder listens to z."""
    torch.manual_seed(0)
    config = dataclasses.replace(configured(4, "smoke"), **({"cell": 32, "decoder_heads": 4} | changes))
    model = Model(config).eval()
    with torch.no_grad():
        model.decoder.input.weight[:, config.width :] *= 40
    return model


def boards(count, clues=45):
    """(puzzle, solution), int64 [count, 81]"""
    found = puzzles.make(count, clues=clues).rows(np.arange(count))
    return [torch.from_numpy(board.astype(np.int64)) for board in found]


def certain(board, sure=1.0):
    """[..., 81, 9]: probabilities that give each cell of a board its digit."""
    return np.where(np.arange(1, 10) == board[..., None], sure, (1 - sure) / 8)


def observed(puzzle, solution, path, columns=None):
    """What a descent along these boards [steps + 1, n, 81] would give; a column that is not given is its end."""
    path, n = np.asarray(path), len(puzzle)
    found = dict.fromkeys(COLUMNS, path[-1]) | (columns or {})
    z = np.zeros((len(path), n, 4), np.float32)
    return Observed(
        puzzle, solution, certain(path), found, certain(found["z = 0"]), z, z[0], np.ones((len(path) - 1, n))
    )


# ---------------------------------------------------------------- statistics


def test_nothing_is_no_coverage():
    for figure in (share([0, 0], [0, 0]), share([2] * 9, [9] * 9), share([25], [25])):
        assert figure["share"] is figure["low"] is figure["high"] is None
        assert figure["note"].startswith("not enough data")
    enough = share([3] * 10, [3] * 10)
    assert enough["share"] == 1 and enough["low"] < 0.9 and enough["of"] == 30 and "note" not in enough


def test_mean_of_puzzles():
    values = np.random.default_rng(0).random(12)
    figure = interpret.mean(values)
    half = 2.201 * values.std(ddof=1) / math.sqrt(12)  # Student's t with 11 degrees of freedom
    assert figure["mean"] == pytest.approx(values.mean())
    assert figure["high"] - figure["mean"] == pytest.approx(half, rel=0.003)
    assert interpret.mean(values[:9])["mean"] is None and "9 puzzles" in interpret.mean(values[:9])["note"]
    assert interpret.mean([*values, math.nan])["note"] == "not finite in 1 of 13 puzzles"


def test_correlation_is_spearmans():
    random = np.random.default_rng(0)
    codes, steps = random.integers(0, 10, 400), random.integers(0, 8, 400)
    steps += LEVEL[codes]
    expected = pd.Series(LEVEL[codes]).rank().corr(pd.Series(steps).rank())
    found = interpret.correlation(codes, steps, np.arange(400) % 50)
    assert found["correlation"] == pytest.approx(expected) and expected > 0.3
    assert found["low"] < expected < found["high"] and found["n"] == 400 and found["puzzles"] == 50
    assert 0.1 < found["high"] - found["low"] < 0.3  # 4 / root of n, or less where they go together
    again = interpret.correlation(np.tile(codes, 9), np.tile(steps, 9), np.tile(np.arange(400) % 50, 9))
    assert again["correlation"] == pytest.approx(expected)
    for end in ("low", "high"):  # events of the same puzzles are no new evidence
        assert again[end] == pytest.approx(found[end], abs=0.02)


@pytest.mark.parametrize(
    "codes, steps, owners, reason",
    [
        ([0, 8], [1, 9], [0, 1], "2 events of 2 puzzles"),
        (np.arange(300) % 10, np.arange(300), [3] * 300, "300 events of 1 puzzles"),
        ([0] * 299 + [8], np.arange(300) % 7, np.arange(300), "only 1 of 300 events are off the most common level"),
        (np.arange(300) % 10, [4] * 300, np.arange(300), "only 0 of 300 events are off the most common step"),
    ],
)
def test_no_correlation_from_too_little(codes, steps, owners, reason):
    found = interpret.correlation(*map(np.array, (codes, steps, owners)))
    assert found["correlation"] is found["low"] is found["high"] is None and reason in found["note"]


# ---------------------------------------------------------------- 1 and 2: what happens on the way


@pytest.mark.parametrize(
    "trace, step",
    [
        ([0.95, 0.9, 0.86, 0.88], 0),
        ([0.9, 0.856, 0.856, 0.856], 0),
        ([0.5, 0.92, 0.85, 0.95], 3),
        ([0.95, 0.1, 0.91, 0.95], 2),
        ([0.5, 0.7, 0.89, 0.89], -1),
        ([0.95, 0.95, 0.95, 0.2], -1),
    ],
)
def test_lock_in(trace, step):
    puzzle, solution = boards(2)
    puzzle, solution = puzzle.numpy(), solution.numpy()
    row, cell = np.argwhere(puzzle == 0)[-1]
    path = certain(np.tile(solution % 9 + 1, (4, 1, 1)))  # sure of a wrong digit everywhere
    path[:, row, cell] = certain(solution[row, cell], np.array(trace)[:, None])
    path[:, puzzle > 0] = certain(solution)[puzzle > 0]
    expected = np.full((2, 81), -1)
    expected[row, cell] = step
    assert (interpret.lock_in(path, puzzle, solution) == expected).all()


def test_lock_ins_are_explained_by_those_before():
    puzzle, solution = (np.array([parse(board)] * 2) for board in PUZZLES[0])
    blanks = np.flatnonzero(puzzle[0] == 0)
    every = np.where(puzzle == 0, 0, -1)
    _, _, at_once = interpret.lock_in_events(every, puzzle, solution)
    unknown = blanks[at_once[: len(blanks)] == UNKNOWN]
    assert len(unknown) > 5 and (at_once[: len(blanks)] == at_once[len(blanks) :]).all()
    lock = every.copy()
    lock[0, unknown[0]] = 3  # all others are there by then
    owners, steps, codes = interpret.lock_in_events(lock, puzzle, solution)
    assert codes[(owners == 0) & (steps == 3)].tolist() == [NAKED]
    before = np.delete(at_once[: len(blanks)], np.flatnonzero(blanks == unknown[0]))
    assert (codes[(owners == 0) & (steps == 0)] == before).all()  # they do not lean on what came after
    assert (codes[owners == 1] == at_once[len(blanks) :]).all()


def test_step_0_is_counted_apart():
    puzzle, solution = (board.numpy() for board in boards(20, clues=41))
    blank = puzzle == 0
    late = blank & (np.arange(81) % 2 == 0)
    never = blank & (np.arange(81) == 1)
    start = np.where(late | never, solution % 9 + 1, solution)
    end = np.where(never, start, solution)
    seen = observed(puzzle, solution, [start, start, end, end, end], {"z = 0": np.where(blank, 1, puzzle)})
    found = interpret.experiment_lock_in(seen, ASKED)
    assert found["steps"] == [int((blank & ~late & ~never).sum()), 0, int((late & ~never).sum()), 0, 0]
    parts = [found[name]["right"] for name in ("at_step_0", "later", "never")]
    assert parts == [found["steps"][0], found["steps"][2], int(never.sum())]
    assert {found[name]["of"] for name in ("at_step_0", "later", "never")} == {40 * 20}
    assert sum(found["strategies_step_0"].values()) == parts[0] and sum(found["strategies_later"].values()) == parts[1]
    explained = sum(count for name, count in found["strategies_later"].items() if name != "unknown")
    assert found["explained_later"]["right"] == explained
    assert found["level_and_step"]["n"] == parts[1]
    assert "off the most common step" in found["level_and_step"]["note"]
    assert json.loads(json.dumps(found)) == found
    alike = found["at_step_0_also_sure_at_z_0"]
    assert (alike["right"], alike["of"]) == (int((blank & ~late & ~never & (solution == 1)).sum()), parts[0])


def test_without_lock_ins_nothing_is_explained():
    puzzle, solution = (board.numpy() for board in boards(20))
    found = interpret.experiment_lock_in(observed(puzzle, solution, [solution % 9 + 1] * 5), ASKED)
    assert found["at_step_0"]["share"] == found["later"]["share"] == 0 and found["never"]["share"] == 1
    for name in ("explained_step_0", "explained_later", "at_step_0_also_sure_at_z_0"):
        assert found[name]["share"] is None and "0 events of 0 puzzles" in found[name]["note"]
    assert found["level_and_step"]["correlation"] is None


def test_changes():
    solution = parse(PUZZLES[0][1])
    first, second, other = 0, 1, 80  # two cells of one row, and one that neither sees
    start = solution.copy()
    start[[first, second]] = solution[[second, first]]
    together = [start, start, solution]
    one = start.copy()
    one[second] = solution[second]  # the first still holds that digit: a clash
    apart = [start, one, solution]
    wrong = solution.copy()
    wrong[other] = solution[other] % 9 + 1
    leaves = [solution, solution, wrong]
    steps, owners, cells, codes = interpret.change_events(np.stack([together, apart, leaves], 1))
    found = sorted(zip(owners.tolist(), steps.tolist(), cells.tolist(), codes.tolist()))
    assert found[2:] == [(1, 1, second, UNKNOWN), (1, 2, first, NAKED), (2, 2, other, UNKNOWN)]
    assert [event[:3] for event in found[:2]] == [(0, 2, first), (0, 2, second)]
    assert {event[3] for event in found[:2]} <= {NAKED, HIDDEN}


def test_progression_counts_right_and_wrong():
    puzzle, solution = (board.numpy() for board in boards(30, clues=70))
    cell = (puzzle == 0).argmax(1)
    other = 80 - (puzzle == 0)[:, ::-1].argmax(1)
    rows = np.arange(30)
    start, end = solution.copy(), solution.copy()
    start[rows, cell] = solution[rows, cell] % 9 + 1  # wrong, then right
    end[:10][rows[:10], other[:10]] = solution[rows, other][:10] % 9 + 1  # right, then wrong
    middle = np.where(rows[:, None] == 29, start, end)
    found = interpret.experiment_progression(observed(puzzle, solution, [start, start, middle, middle, end]), ASKED)
    assert (found["wrong_to_right"], found["right_to_wrong"], found["wrong_to_wrong"]) == (30, 10, 0)
    assert found["events"] == 40 and found["per_puzzle"]["mean"] == pytest.approx(40 / 30)
    assert found["puzzles_that_change"]["right"] == 30 and found["now_right"]["right"] == 30
    assert np.array(found["by_step_and_level"]).sum(1).tolist() == [0, 0, 39, 0, 1]
    counts = found["strategies"].values()
    assert sum(row["right"] for row in counts) == 30 and sum(row["wrong"] for row in counts) == 10
    assert found["explained"]["of"] == 40 and json.loads(json.dumps(found)) == found
    assert found["explained"]["right"] == 40 - sum(found["strategies"]["unknown"].values())


def test_what_changes_and_changes_back_does_not_end_otherwise():
    puzzle, solution = (board.numpy() for board in boards(30, clues=70))
    away = np.where(puzzle > 0, puzzle, solution % 9 + 1)
    found = interpret.experiment_progression(observed(puzzle, solution, [solution, away, *[solution] * 3]), ASKED)
    assert found["per_puzzle"]["mean"] == 22 and found["blanks_that_end_otherwise"]["right"] == 0
    assert found["blanks_that_end_otherwise"]["of"] == 30 * 11


# ---------------------------------------------------------------- 3: attention


def attention(kind):
    """[1, 1, 81, 81]: a head that spreads its attention over one group."""
    row, column = np.divmod(np.arange(81), 9)
    groups = {
        "uniform": np.zeros(81), "row": row, "column": column, "box": row // 3 * 3 + column // 3, "own": np.arange(81),
    }  # fmt: skip
    same = (groups[kind][:, None] == groups[kind]).astype(float)
    return torch.from_numpy(same / same.sum(1, keepdims=True))[None, None]


@pytest.mark.parametrize(
    "kind, score, others, name",
    [
        ("uniform", [1, 1, 1, 1], [1, 1, 1], "mixed"),
        ("row", [9, 1, 3, 9], [10, 0, 2.5], "row"),
        ("column", [1, 9, 3, 9], [0, 10, 2.5], "column"),
        ("box", [3, 3, 9, 9], [2.5, 2.5, 10], "box"),
        ("own", [9, 9, 9, 81], [0, 0, 0], "row"),
    ],
)
def test_scores_of_known_attention(kind, score, others, name):
    found = interpret.scores(attention(kind))[0, 0].numpy()
    assert found == pytest.approx(score)
    assert interpret.others_only(found) == pytest.approx(others, abs=1e-6)
    assert interpret.label(found) == name
    assert interpret.label(interpret.others_only(found)) == ("mixed" if kind == "own" else name)


def test_a_head_is_named_above_the_threshold_only():
    assert interpret.label([1.19, 0.8, 1.0]) == "mixed" and interpret.label([1.0, 0.8, 1.21]) == "box"
    assert interpret.label([1.1, 1.1, 1.1, 9.0]) == "mixed"  # the own cell is no group


def build(model, layer, head, places):
    """Let a decoder's head attend to cells whose embedding in `places` (the 9 rows, columns or boxes) is the same."""
    cells = model.decoder.cells
    with torch.no_grad():
        for embedding, first in ((cells.row, 0), (cells.column, 9), (cells.box, 18)):
            embedding.weight.zero_()
            embedding.weight[:, first : first + 9] = torch.eye(9)
        model.decoder.input.weight.zero_()
        model.decoder.input.bias.zero_()
        qkv, width = cells.layers[layer].qkv, model.config.cell
        size = width // model.config.decoder_heads
        qkv.bias.zero_()
        for block in (0, width):  # queries, then keys
            rows = slice(block + head * size, block + head * size + 9)
            qkv.weight[block + head * size : block + (head + 1) * size].zero_()
            qkv.weight[rows, places : places + 9] = 4 * torch.eye(9)
    return model


@pytest.mark.parametrize("head, places, name", [(0, 0, "row"), (1, 9, "column"), (1, 18, "box")])
def test_profile_finds_a_built_head(head, places, name):
    model = build(model_of(cell=64, decoder_heads=2, decoder_layers=1), 0, head, places)
    with torch.no_grad():
        model.decoder.cells.layers[0].qkv.weight[[*range((1 - head) * 32, (2 - head) * 32)]] = 0  # the other: uniform
    puzzle, _ = boards(12)
    found = interpret.profile(model, puzzle, torch.randn(3, 12, model.config.latent))["decoder"].mean(2)[0]
    assert interpret.label(found[head]) == name and found[1 - head] == pytest.approx([1] * 4, abs=1e-5)


def test_profile_sees_the_attention_of_every_forward_pass():
    model, (puzzle, _) = model_of(decoder_layers=2), boards(3)
    z = torch.randn(4, 3, model.config.latent)
    found = interpret.profile(model, puzzle, z)
    with torch.no_grad():
        expected = []
        for state in z:
            h = model.decoder.input(torch.cat([model.context(puzzle), state], -1)).unflatten(1, (81, -1))
            h = h + sum(e(p) for e, p in zip((model.decoder.cells.row, model.decoder.cells.column,
                                              model.decoder.cells.box), model.decoder.cells.places))  # fmt: skip
            h = model.decoder.cells.layers[0](h)
            expected.append(interpret.scores(model.decoder.cells.layers[1].attention(h)[0]))
    assert found["decoder"].shape == (2, 4, 3, 4) and found["encoder"].shape[:1] == (model.config.layers,)
    assert found["decoder"][1].transpose(1, 0, 2) == pytest.approx(torch.stack(expected).mean(0).numpy(), rel=1e-4)
    assert not any(layer._forward_pre_hooks for layers in interpret.layers_of(model).values() for layer in layers)


def test_heads_with_their_n_and_the_untrained_ones():
    model, (puzzle, solution) = model_of(), boards(12)
    asked = dataclasses.replace(ASKED, steps=9)
    seen = interpret.observe(model, puzzle, solution, "consistency", asked)
    found = interpret.experiment_heads(model, puzzle, seen)
    assert (found["puzzles"], found["looks"]) == (12, 2)  # steps 0 and 5
    assert [(h["part"], h["layer"], h["head"]) for h in found["heads"]] == [
        *(("decoder", layer, head) for layer in range(model.config.decoder_layers) for head in range(4)),
        *(("encoder", layer, head) for layer in range(model.config.layers) for head in range(model.config.heads)),
    ]
    assert all(head["row"]["n"] == 12 for head in found["heads"])
    assert found["untrained_decoder"]["heads"] == 4 * model.config.decoder_layers
    torch.rand(1)
    assert json.loads(json.dumps(found)) == found
    assert found == interpret.experiment_heads(model, puzzle, seen)


def test_a_name_is_certain_where_the_interval_leaves_out_the_threshold(monkeypatch):
    """Row scores of three heads in 12 puzzles: mean and spread. One of the untrained heads is named by chance, and the
    first trained head owes its name to the own cell."""
    rows = {True: ((1.3, 0.1), (1.3, 1.0), (1.0, 0.1)), False: ((1.0, 0.0), (1.0, 0.0), (1.25, 0.0))}
    model, (puzzle, _) = model_of(), boards(12)

    def profile(network, puzzle, z):
        row = np.array([mean + spread * np.linspace(-1, 1, 12) for mean, spread in rows[network is model]])
        scores = np.stack([row, *np.ones((3, *row.shape))], -1)
        scores[0, :, 3] = 3
        return dict.fromkeys(("decoder", "encoder"), scores[None])

    monkeypatch.setattr(interpret, "profile", profile)
    seen = SimpleNamespace(z=np.zeros((6, 12, model.config.latent)))
    found = interpret.experiment_heads(model, puzzle, seen)
    for part in ("decoder", "encoder"):
        heads = [head for head in found["heads"] if head["part"] == part]
        assert [(head["label"], head["certain"]) for head in heads] == [("row", True), ("row", False), ("mixed", True)]
        assert [head["label_without_own_cell"] for head in heads] == ["mixed", "row", "mixed"]
        assert found[f"untrained_{part}"] == {"heads": 3, "named": 1, "highest": 1.25}


# ---------------------------------------------------------------- 4: ablation


def test_without_a_head_its_output_is_gone_and_comes_back():
    model = model_of(decoder_layers=2)
    layer, h = model.decoder.cells.layers[1], torch.randn(2, 81, 32)
    with torch.no_grad():
        weights, values = layer.attention(h)
        values[:, 2] = 0
        gone = h + layer.out((weights @ values).transpose(1, 2).flatten(2))
        gone = gone + layer.down(torch.nn.functional.gelu(layer.up(layer.norm_mlp(gone))))
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with pytest.raises(KeyError), interpret.without(model, [(1, 2)]):
            assert torch.allclose(layer(h), gone, atol=1e-5) and not torch.allclose(layer(h), h)
            assert (model.decoder.cells.layers[0].out.weight == before["decoder.cells.layers.0.out.weight"]).all()
            raise KeyError
    assert all((value == before[name]).all() for name, value in model.state_dict().items())


def test_named_heads_come_first():
    names = ["mixed", "row", "mixed", "box"]
    heads = [{"part": "decoder", "layer": i // 2, "head": i % 2, "label": name} for i, name in enumerate(names)]
    heads += [{"part": "encoder", "layer": 0, "head": 0, "label": "row"}]
    assert interpret.chosen_heads(heads, 3) == [(0, 1, "row"), (1, 1, "box"), (0, 0, "mixed")]


def test_ablation_has_the_same_noise_and_puzzles():
    model, (puzzle, solution) = model_of(decoder_layers=1), boards(40)
    with torch.no_grad():
        model.decoder.cells.layers[0].out.weight[:, :8] = 0  # head 0 does nothing
        model.decoder.cells.layers[0].out.weight[:, 8:16] *= 30  # head 1 does much
    asked = dataclasses.replace(ASKED, steps=2)
    seen = interpret.observe(model, puzzle, solution, "consistency", asked)
    heads = interpret.experiment_heads(model, puzzle, seen)["heads"]
    for head in heads:
        head["label"] = "row"
    found = interpret.experiment_ablation(model, puzzle, seen, heads, "consistency", asked)
    assert [(row["layer"], row["head"]) for row in found["heads"]] == [(0, 0), (0, 1), (0, 2), (None, None)]
    idle, busy, _, every = found["heads"]
    for column in ("Langevin", "z = 0"):
        assert (idle[column]["better"], idle[column]["worse"], idle[column]["points"]) == (0, 0, 0)
        assert idle[column]["low"] is None  # no change in 40 puzzles is no proof that there is none
        assert busy[column]["better"] + busy[column]["worse"] > 10 and busy[column]["low"] is not None
        assert every[column]["better"] + every[column]["worse"] > 10
    assert found["puzzles"] == 40 and found["blanks"] == 40 * 36 and found["intervals"] <= 2
    assert json.loads(json.dumps(found)) == found and found["worse"] + found["better"] <= found["intervals"]
    again = interpret.experiment_ablation(model, puzzle, seen, heads, "consistency", asked)
    assert again == found


def test_heads_that_make_it_worse_or_better_are_counted(monkeypatch):
    """Half of the cells are right. Without heads 0 and 1, or without all, none is; without head 2 every one."""
    model, (puzzle, solution) = model_of(decoder_layers=1, decoder_heads=8), boards(20)
    wrong, removed = solution % 9 + 1, []
    half = torch.where(torch.arange(81) % 2 == 0, solution, wrong)

    def descend(model, *_):
        columns = model.decoder.cells.layers[0].out.weight.unflatten(1, (8, -1))
        removed.append((columns == 0).all(2).all(0).nonzero().flatten().tolist())
        board = wrong if {0, 1} & {*removed[-1]} else solution if 2 in removed[-1] else half
        return SimpleNamespace(boards=board[:, None])

    monkeypatch.setattr(interpret, "descend", descend)
    seen = observed(puzzle.numpy(), solution.numpy(), [half.numpy()] * 2)
    heads = [{"part": "decoder", "layer": 0, "head": head, "label": "row"} for head in range(8)]
    asked = dataclasses.replace(ASKED, heads=4)
    found = interpret.experiment_ablation(model, puzzle, seen, heads, "consistency", asked)
    assert removed == [[0], [1], [2], [3], [*range(8)]]
    assert (found["worse"], found["better"], found["intervals"]) == (2, 1, 3)  # head 3 changes nothing
    assert found["by_chance"] == pytest.approx(0.15)
    assert [row["Langevin"]["points"] > 0 for row in found["heads"]] == [False, False, True, False, False]


# ---------------------------------------------------------------- 5: forward pass and Langevin


def test_only_the_oracle_sees_the_answer():
    model, (puzzle, solution) = model_of(), boards(8)
    false = (solution + 3) % 9 + 1
    seen, blind = (interpret.observe(model, puzzle, s, "consistency", ASKED) for s in (solution, false))
    for column in ("z = 0", "z random", "Langevin"):
        assert (seen.boards[column] == blind.boards[column]).all(), column
    assert (seen.oracle != blind.oracle).any()
    assert (seen.probabilities == blind.probabilities).all() and (seen.at_zero == blind.at_zero).all()


def test_columns_are_those_of_the_evaluation():
    model, (puzzle, solution) = model_of(), boards(8)
    seen = interpret.observe(model, puzzle, solution, "consistency", dataclasses.replace(ASKED, at_once=3))
    asked = evaluate.Arguments("", steps=ASKED.steps, chains=1, decodes=1)
    found, _, _ = evaluate.compare(model, puzzle, solution, asked, "consistency", 1)
    for column in COLUMNS:
        assert (seen.boards[column] == found[column]).all(), column
    start = langevin.normal(puzzle, 1, model.config.latent, 0, step=0)[:, 0]
    assert (seen.z[0] == start.numpy()).all() and seen.z.shape == (5, 8, model.config.latent)


def test_forward_against_langevin():
    puzzle, solution = (board.numpy() for board in boards(20, clues=61))
    blank = puzzle == 0
    order = blank.cumsum(1) * blank  # the number of each blank, from 1 to 20
    wrong = solution % 9 + 1
    right_until = lambda last: np.where(blank & (order > last), wrong, solution)  # noqa: E731
    langevin_board = np.where(np.arange(20)[:, None] < 5, solution, right_until(5))
    oracle = np.where(np.arange(20)[:, None] < 10, right_until(10), solution)
    seen = observed(puzzle, solution, [langevin_board] * 2, {"oracle": oracle, "z = 0": right_until(4)})
    found = interpret.experiment_forward(seen)["columns"]
    assert found["oracle"]["cells"]["share"] == 0.75 and found["oracle"]["sees_the_answer"]
    assert found["z = 0"]["cells"]["share"] == 0.2 and not found["z = 0"]["sees_the_answer"]
    zero = found["z = 0"]["recovery"]
    assert zero["mean"] == pytest.approx((10 * 4 / 10 + 10 * 4 / 20) / 20) and zero["n"] == 20  # puzzle by puzzle
    assert found["Langevin"]["recovery"]["mean"] == pytest.approx((5 * 2 + 5 * 0.5 + 10 * 0.25) / 20)
    assert found["Langevin"]["cells_against_zero"]["points"] == pytest.approx((5 * 16 + 15 * 1) / 400)
    assert found["Langevin"]["puzzles"]["note"].startswith("not enough data: 20 events")
    assert found["Langevin"]["puzzles"]["right"] == 5


def test_lengths_of_z_and_energies():
    puzzle, solution = (board.numpy() for board in boards(10, clues=70))
    z = np.zeros((3, 10, 4))
    z[0, :, 0], z[1], z[2, :, 1] = 3, 9, 4
    seen = observed(puzzle, solution, [solution] * 3)
    seen = dataclasses.replace(seen, z=z, oracle=np.ones((10, 4)), energy=np.array([[7.0] * 10, [2.0] * 10]))
    found = interpret.experiment_forward(seen)
    lengths = {name: figure["mean"] for name, figure in found["norm_of_z"].items()}
    assert lengths == pytest.approx({"oracle": 2, "start": 3, "end": 4, "moved": 5})
    assert (found["energy"]["first"]["mean"], found["energy"]["last"]["mean"]) == (7, 2)


def test_by_the_strategy_that_the_clues_ask_for():
    puzzle, solution = (np.array([parse(board)] * 10) for board in PUZZLES[1])
    needed = np.zeros(81, int)
    blanks = np.flatnonzero(puzzle[0] == 0)
    needed[blanks] = LEVEL[interpret.explain(puzzle[:1], [0] * len(blanks), blanks, solution[0, blanks])]
    board = np.where((needed == 4) & (np.arange(81) != 40), solution, np.where(puzzle > 0, puzzle, solution % 9 + 1))
    result = interpret.experiment_forward(observed(puzzle, solution, [board] * 2, {"oracle": board % 9 + 1}))
    levels = result["columns"]["Langevin"]["right_by_level"]
    for level in range(1, 7):
        count = int((needed == level).sum())
        assert levels[str(level)]["of"] == 10 * count
        if 10 * count >= interpret.ENOUGH:
            assert levels[str(level)]["share"] == float(level == 4), level
        else:
            assert levels[str(level)]["share"] is None
    assert result["strategies_of_solution"]["unknown"] == 10 * int((needed == 6).sum())
    wrong = sum(row["wrong"] for row in result["columns"]["Langevin"]["strategies"].values())
    assert wrong == int((board != solution).sum())
    assert result["columns"]["z = 0"]["recovery"]["mean"] is None  # the oracle has no cell right: no ratio
    assert result["columns"]["z = 0"]["recovery"]["note"].startswith("not enough data: 0 puzzles")
    assert json.loads(json.dumps(result)) == result


# ---------------------------------------------------------------- figures and command


@pytest.fixture
def run(clean):
    """A folder with a checkpoint of an untrained model and 1,500 puzzles, of which about 75 are test puzzles."""
    model = model_of()
    state = {"experiment": "ebm", "step": 6, "config": vars(model.config), "model": model.state_dict()}
    disk.save_checkpoint(clean / "checkpoint.pt", state)
    store.save(clean / "puzzles.npy", puzzles.make(1500))
    return clean


FLAGS = ("--data", "puzzles.npy", "--steps", "3", "--heads", "2")


def test_the_command(run, capsys):
    assert not interpret.main([str(run), *FLAGS, "--puzzles", "30"])
    said = capsys.readouterr().out
    result = json.loads((run / "interpret" / "interpret.json").read_text(), parse_constant=pytest.fail)
    assert result["puzzles"] == 30 and result["left_out"]["train"] > 1000
    assert set(interpret_plots.FIGURES) < set(result)
    assert len(result["lock_in"]["steps"]) == 4 and len(result["ablation_impact"]["heads"]) == 3
    for name in interpret_plots.FIGURES:
        assert (run / "interpret" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    assert "oracle (sees the answer)" in said and "5 z = 0: blanks" in said


@pytest.mark.parametrize("number, energy, kind", [(3, "auto", "norm"), (4, "auto", "consistency"), (4, "norm", "norm")])
def test_the_energy_is_that_of_the_run(number, energy, kind, run, monkeypatch):
    model, config = load_model(run / "checkpoint.pt")
    seen = []
    monkeypatch.setattr(interpret, "observe", lambda *arguments: seen.append(arguments[3]) or {}["enough"])
    with pytest.raises(KeyError, match="enough"):
        asked = interpret.Arguments("", data="puzzles.npy", energy=energy)
        interpret.study(model, dataclasses.replace(config, run=number), asked)
    assert seen == [kind]


def test_at_once_changes_nothing(run, monkeypatch):
    monkeypatch.setattr(interpret, "RESAMPLED", 20)
    model, config = load_model(run / "checkpoint.pt")
    asked = interpret.Arguments("", data="puzzles.npy", puzzles=11, steps=2, heads=1)
    whole, parts = (interpret.study(model, config, dataclasses.replace(asked, at_once=n)) for n in (512, 4))
    for name in ("lock_in", "strategy_progression", "ablation_impact"):
        assert whole[name] == parts[name], name


def test_few_puzzles_and_no_heads(run, capsys):
    assert not interpret.main([str(run), *FLAGS[:-1], "0", "--puzzles", "2"])
    said = capsys.readouterr().out
    assert "4 heads removed: 0" in said and "not enough data: 2 puzzles" in said
    assert (run / "interpret" / "ablation_impact.png").exists()


def test_figures_say_what_is_missing():
    puzzle, solution = (board.numpy() for board in boards(2))
    seen = observed(puzzle, solution, [solution % 9 + 1] * 5)
    found = interpret.experiment_lock_in(seen, ASKED)
    figure = interpret_plots.FIGURES["lock_in"](found, "two puzzles")
    words = [axis.get_title("left").replace("\n", " ") for axis in figure.axes]
    assert all("not enough data: 0 events of 0 puzzles" in text for text in words[1:])


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--steps", "0"], "--steps 0: expected 1 or more"),
        (["--at-once", "0"], "--at-once 0: expected 1 or more"),
        (["--heads", "-1"], "--heads -1: expected a number, 0 or more"),
        (["--lr", "nan"], "--lr nan: expected a number, 0 or more"),
        (["--parts"], "--parts: expected validation, test or both"),
        (["--data", "nothing.npy"], "nothing.npy: there is no such file"),
        (["--output", "puzzles.npy"], "--output puzzles.npy: is a file; expected a folder"),
    ],
)
def test_bad_flags(run, capsys, flags, message):
    assert interpret.main([str(run), *FLAGS, *flags]) == 2
    assert message in capsys.readouterr().err


def test_no_checkpoint(clean, capsys):
    assert interpret.main(["nowhere.pt"]) == 2
    assert "nowhere.pt does not exist; give the path of a checkpoint.pt" in capsys.readouterr().err
