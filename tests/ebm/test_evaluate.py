"""The evaluation cannot see the answer; its figures are those of a direct count; bad input is one line and status 2."""

import dataclasses
import inspect
import json
import math

import numpy as np
import pytest
import torch

from data import store
from ebm import data, evaluate, langevin
from ebm.train import Model, configured
from plumbing import disk
from tests.data import puzzles

ASKED = evaluate.Arguments("", steps=2, chains=3, decodes=4)
HONEST = ("z = 0", "z random", "Langevin")


def model_of(run=4):
    """An untrained model whose decoder listens to z."""
    torch.manual_seed(0)
    model = Model(configured(run, "smoke")).eval()
    with torch.no_grad():
        model.decoder.input.weight[:, model.config.width :] *= 10
    return model


def boards(count, clues=30):
    """(puzzle, solution), int64 [count, 81]"""
    found = puzzles.make(count, clues=clues).rows(np.arange(count))
    return [torch.from_numpy(board.astype(np.int64)) for board in found]


@pytest.fixture
def run(clean):
    """A run's folder with an untrained model in it."""
    save(clean / "checkpoint.pt", model_of())
    return clean


def save(path, model):
    state = {"experiment": "ebm", "step": 6, "config": vars(model.config), "model": model.state_dict()}
    disk.save_checkpoint(path, state)


def write_csv(path, found):
    lines = ["puzzle,solution,difficulty"]
    for puzzle, solution, rating in zip(*found.rows(slice(None)), found.rating):
        lines.append(f"{''.join(map(str, puzzle))},{''.join(map(str, solution))},{rating:g}")
    path.write_text("\n".join(lines) + "\n")


# ---------------------------------------------------------------- no leak


def test_scrambled_answers_move_the_oracle_only():
    model, (puzzle, solution) = model_of(), boards(6)
    scrambled = (solution.roll(1, 0) + torch.arange(81) * 2) % 9 + 1  # another's, and other digits, cell by cell
    assert not (scrambled == solution).all(1).any()
    true, false = (evaluate.compare(model, puzzle, s, ASKED, "consistency", 4)[0] for s in (solution, scrambled))
    assert set(true) == set(false) and set(true) >= {*evaluate.COLUMNS, *evaluate.SEES_THE_ANSWER}
    for column in true:
        asks = column in {*evaluate.SEES_THE_ANSWER, "z of another"}  # a control: it reads other puzzles' solutions
        assert (true[column] == false[column]).all() == (not asks), column
    columns = [
        evaluate.score(found, puzzle.numpy(), s.numpy(), np.zeros(6), (0, 1))
        for found, s in ((true, solution), (false, scrambled))
    ]
    for column in HONEST:  # the rules need no answer; whether blanks are right does
        assert columns[0][column]["all"]["groups"] == columns[1][column]["all"]["groups"]
        assert columns[0][column]["checksum"] == columns[1][column]["checksum"]
        assert columns[0][column]["all"]["cells"] != columns[1][column]["all"]["cells"]


def test_what_is_honest_takes_no_solution():
    makers = (evaluate.honest, langevin.solve, langevin.read, langevin.measure, langevin.energy, langevin.choose)
    for maker in makers:
        assert not {"solution", "answer", "target", "puzzles"} & set(inspect.signature(maker).parameters), maker
    assert "solution" in inspect.signature(evaluate.oracle).parameters


def test_the_answers_stay_sealed_until_the_honest_boards_stand(monkeypatch):
    model, (puzzle, solution) = model_of(), boards(5)
    finished, honest = [], evaluate.honest

    def watched(*arguments):
        found = honest(*arguments)
        finished.append(len(found[0]["Langevin"]))
        return found

    class Sealed:
        def __getitem__(self, rows):
            assert sum(finished) >= min(rows.stop, 5), "an answer was read before its honest board stood"
            return solution[rows]

    monkeypatch.setattr(evaluate, "honest", watched)
    asked = dataclasses.replace(ASKED, at_once=6)  # two puzzles of three chains
    evaluate.compare(model, puzzle, Sealed(), asked, "norm", 4)
    assert finished == [2, 2, 1]


def test_oracle_z_is_the_solutions_without_noise():
    model, (puzzle, solution) = model_of(), boards(4)
    found, _, _ = evaluate.compare(model, puzzle, solution, ASKED, "norm", 1)
    one_hot = (solution[..., None] == torch.arange(1, 10)).float()
    z = model.latent(model.target(one_hot), torch.zeros(4, model.config.latent))
    direct = model.decode(model.context(puzzle), z, puzzle).argmax(-1) + 1
    assert (found["oracle"] == direct.numpy()).all()
    model = model_of(run=1)  # its z is noise alone: without noise nothing is left to see
    found, _, _ = evaluate.compare(model, puzzle, solution, ASKED, "norm", 1)
    assert (found["oracle"] == found["z = 0"]).all()


@pytest.mark.parametrize("at_once", [1024, 6])
def test_z_of_another_is_not_the_puzzles_own(at_once):
    model, (puzzle, solution) = model_of(), boards(5)
    asked = dataclasses.replace(ASKED, at_once=at_once)
    found, _, _ = evaluate.compare(model, puzzle, solution, asked, "norm", 1)
    order = [4, 0, 1, 2, 3] if at_once > 6 else [1, 0, 1, 2, 3]  # the first part of two has no puzzle before it
    z = evaluate.z_of(model, solution, 2)
    read = lambda z: (model.decode(model.context(puzzle), z, puzzle).argmax(-1) + 1).numpy()  # noqa: E731
    assert (found["z of another"] == read(z[order])).all() and (found["oracle"] == read(z)).all()
    assert (found["z of another"] != found["oracle"]).any()


def test_spread_is_the_standard_deviation_over_puzzles():
    model, (puzzle, solution) = model_of(), boards(5)
    found = evaluate.spread(model, puzzle, solution, 2)
    one_hot = (solution[..., None] == torch.arange(1, 10)).float()
    for name, vectors in (("context", model.context(puzzle)), ("target", model.target(one_hot))):
        assert found[name] == pytest.approx(vectors.std(0).mean().item(), rel=1e-4)
    z = evaluate.z_of(model, solution, 9)
    assert found["z"] == pytest.approx(z.std(0).mean().item()) and torch.allclose(z.norm(dim=1), torch.ones(5))
    assert evaluate.spread(model, puzzle[:1], solution[:1], 9)["z"] is None


def test_the_untrained_model_is_the_one_that_training_began_with(clean):
    from ebm import train

    start = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            train.Run,
            "resume",
            lambda run, model, o: (
                start.append({name: p.clone() for name, p in model.state_dict().items()}) or run.config.steps
            ),
        )
        patch.setattr(train.Run, "finish", lambda run, n: run.close())
        train.main(["--preset", "smoke", "--seed", "3"])
    torch.manual_seed(9)
    before = torch.random.get_rng_state()
    config = dataclasses.replace(configured(4, "smoke"), seed=3)
    again = evaluate.untrained(config, "cpu").state_dict()
    assert all(torch.equal(again[name], value) for name, value in start[0].items())
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("true_noise", [False, True])
def test_columns_are_what_they_say(true_noise):
    model, (puzzle, solution) = model_of(), boards(5)
    asked = dataclasses.replace(ASKED, lr=0.02, noise=0.5, seed=3, true_noise=true_noise)
    found, states, seconds = evaluate.compare(model, puzzle, solution, asked, "norm", 4)
    z_context, zero = model.context(puzzle), torch.zeros(5, model.config.latent)
    read = lambda z: (model.decode(z_context, z, puzzle).argmax(-1) + 1).numpy()  # noqa: E731
    start = langevin.normal(puzzle, 1, model.config.latent, 3, 0)[:, 0]
    assert (found["z = 0"] == read(zero)).all() and (found["z random"] == read(start)).all()
    assert (found["decodes, one"] == found["z random"]).all()  # and the chains start there, too
    solved = langevin.solve(model, puzzle, 2, 3, 0.02, 0.5, "norm", 3, true_noise=true_noise)
    for choice, board in langevin.choose(solved.boards, solved.energy).items():
        assert (found[f"Langevin, {choice}"] == board).all()
    assert (found["Langevin"] == found["Langevin, energy"]).all()
    assert (found["Langevin, oracle"] == langevin.choose_by_oracle(solved.boards, solution)).all()
    candidates = langevin.read(model, puzzle, langevin.normal(puzzle, 4, model.config.latent, 3, 0))
    assert (found["decodes, majority"] == langevin.choose(candidates)["majority"]).all()
    assert states["z = 0"]["norm of z"] == 0
    assert states["z random"]["norm of z"] == pytest.approx(start.norm(dim=1).mean().item(), rel=1e-5)
    assert states["Langevin"]["norm of z"] == pytest.approx(solved.z[:, 0].norm(dim=1).mean().item(), rel=1e-5)
    assert states["oracle"]["norm of z"] == pytest.approx(1)
    with langevin.frozen(model):
        terms = langevin.energy(model, puzzle, z_context, zero, 0.0, "norm")
    assert states["z = 0"]["total"] == pytest.approx((terms["norm"] + 3 * terms["penalty"]).mean().item(), rel=1e-5)
    assert set(seconds) == {*evaluate.COLUMNS, "decodes"} and min(seconds.values()) > 0


# ---------------------------------------------------------------- figures


def test_intervals():
    ones = np.ones(10)
    figure = evaluate.share(np.arange(10) < 8, ones)
    assert (figure["right"], figure["of"], figure["share"]) == (8, 10, 0.8)
    assert [figure["low"], figure["high"]] == pytest.approx([0.490162, 0.943318], abs=1e-5)  # Wilson's
    none, every = evaluate.share(0 * ones, ones), evaluate.share(ones, ones)
    assert [none["low"], none["high"]] == pytest.approx([0, 0.277533], abs=1e-5)
    assert [every["low"], every["high"]] == pytest.approx([0.722467, 1], abs=1e-5)
    assert evaluate.share([], [])["share"] is None and evaluate.percent(evaluate.share([0], [0])) == "no data"


def test_cells_of_one_board_are_no_independent_trials():
    right, random = np.arange(100) < 50, np.random.default_rng(0)
    boards_alike = evaluate.share(40 * right, 40 * np.ones(100))  # all 40 blanks right, or none
    puzzles_only = evaluate.share(right, np.ones(100))
    assert [boards_alike[k] for k in ("share", "low", "high")] == pytest.approx(
        [puzzles_only[k] for k in ("share", "low", "high")]
    )
    apart = evaluate.share(random.binomial(40, 0.5, 100), 40 * np.ones(100))
    width = apart["high"] - apart["low"]
    assert width == pytest.approx(2 * 1.96 * math.sqrt(0.25 / 4000), rel=0.15)  # 4,000 independent cells
    regular = evaluate.share(np.where(right, 20, 21), 40 * np.ones(100))  # nearly equal: no more than all cells apart
    assert regular["high"] - regular["low"] == pytest.approx(width, rel=0.15)
    for right in ([20, 20], [20, 21]):  # two puzzles that happen to agree, or nearly, prove nothing
        few = evaluate.share(right, [40, 40])
        assert few["high"] - few["low"] > 0.6


def test_differences_are_of_the_same_puzzles():
    base, of = np.zeros(40), np.full(40, 10)
    right = np.repeat([1.0, -1.0, 0.0], [20, 4, 16])
    figure = evaluate.difference(right, base, of)
    assert (figure["better"], figure["worse"]) == (20, 4) and figure["points"] == pytest.approx(16 / 400)
    half = 1.96 * math.sqrt(20 * 0.6**2 + 4 * 1.4**2 + 16 * 0.4**2) / 400
    assert [figure["low"], figure["high"]] == pytest.approx([0.04 - half, 0.04 + half], abs=1e-5)
    assert evaluate.difference(right[15:30], base[15:30], of[15:30])["low"] is None
    assert "too few differ" in evaluate.points(evaluate.difference(right[15:30], base[15:30], of[15:30]))


def test_figures_by_bucket_are_direct_counts():
    puzzle, solution = (torch.cat(b).numpy() for b in zip(boards(6, 71), boards(4, 70), boards(3, 20)))
    rating = np.array([0, 5] * 6 + [60.0])
    found = {"z = 0": solution.copy(), "other": solution.copy()}
    wrong = [(0, 0), (0, 1), (8, 2), (12, 80)]
    for row, cell in wrong:
        puzzle[row, cell] = 0
        found["other"][row, cell] = solution[row, cell] % 9 + 1
    figures = evaluate.score(found, puzzle, solution, rating, (0.0, 1.0, 11.0, 51.0, math.inf))["other"]
    blanks = (puzzle == 0).sum(1)
    low = blanks <= 10
    assert {name: row["puzzles"]["of"] for name, row in figures["blanks"].items()} == {
        "0-10": low.sum(), "11-30": 10 - low.sum(), "31-45": 0, "46-81": 3
    }  # fmt: skip
    assert figures["blanks"]["31-45"]["cells"]["share"] is None
    assert list(figures["rating"]) == ["0", "1-10", "11-50", "51+"]
    assert figures["rating"]["0"]["puzzles"]["right"] == 4  # of six, puzzles 0 and 8 are wrong
    assert figures["rating"]["51+"]["cells"]["right"] == blanks[12] - 1
    assert figures["all"]["cells"]["right"] == blanks.sum() - 4 and figures["all"]["cells"]["of"] == blanks.sum()
    assert figures["all"]["puzzles"]["right"] == 10
    assert figures["all"]["groups"]["right"] == sum((langevin.missing(b) == 0).sum() for b in found["other"])
    assert figures["differs"]["right"] == 4 and figures["against_zero"]["puzzles"]["worse"] == 3


def test_rows_columns_and_boxes_are_judged_by_the_rules_alone():
    puzzle, solution = (board.numpy() for board in boards(3))
    found = evaluate.counts(solution % 9 + 1, puzzle, solution)  # other digits, by the rules
    assert found["groups"][0].tolist() == [27] * 3 and found["cells"][0].tolist() == [0] * 3


def test_compute_is_counted():
    model, (puzzle, _) = model_of(), boards(1)
    c = model.config

    def layers(count, width, mlp):
        return count * 2 * 81 * (4 * width**2 + 2 * width * mlp), count * 2 * 2 * 81**2 * width  # products, attention

    decoder, encoder = layers(c.decoder_layers, c.cell, 4 * c.cell), layers(c.layers, c.width, c.mlp)
    linear = 2 * ((c.width + c.latent) * 81 * c.cell + 81 * c.cell * 9) + decoder[0]
    others = 2 * ((c.width + c.latent) * c.predictor + c.predictor**2 + c.predictor * c.width + 81 * 9 * c.width)
    decode, step = evaluate.cost(model, puzzle, "consistency")
    assert decode == linear + decoder[1]
    # backward, a product with a weight costs as much again, since weights take no gradient; one of attention twice
    assert step == 2 * (linear + others + encoder[0]) + 3 * (decoder[1] + encoder[1])
    assert evaluate.cost(model, puzzle, "penalty")[1] == 2 * linear + 3 * decoder[1]


# ---------------------------------------------------------------- the command


def test_puzzles_of_training_are_left_out(run):
    found = puzzles.make(200, ratings=(0, 7))
    write_csv(run / "my.csv", found)
    store.save(run / "my.npy", found)
    place = data.places(found)
    expected = {"train": (place < 0.9).sum(), "validation": ((place >= 0.9) & (place < 0.95)).sum()}
    assert min(expected.values()) > 0 and (place >= 0.95).sum() > 1
    config = configured(4, "smoke")
    for name in ("my.csv", "my.npy"):
        test, left_out = evaluate.held_out(dataclasses.replace(ASKED, data=str(run / name)), config)
        assert left_out == expected
        assert (data.places(test) >= 0.95).all() and len(test) == (place >= 0.95).sum()
    both, left_out = evaluate.held_out(
        dataclasses.replace(ASKED, data="my.csv", parts=("test", "validation")), config
    )  # fmt: skip
    assert list(left_out) == ["train"] and len(both) == (place >= 0.9).sum()
    few = [evaluate.held_out(dataclasses.replace(ASKED, data="my.csv", puzzles=2, seed=s), config)[0] for s in range(5)]
    assert [len(part) for part in few] == [2] * 5 and len({part.table.tobytes() for part in few}) > 1  # random ones
    write_csv(run / "known.csv", found.subset(np.flatnonzero(place < 0.9)))
    with pytest.raises(SystemExit, match=r"known.csv: all of its \d+ puzzles belong to other parts of the split"):
        evaluate.held_out(dataclasses.replace(ASKED, data="known.csv"), config)


def own_test():
    return data.load(configured(4, "smoke")).test


def test_own_puzzles_are_the_test_part_of_the_training_data(run):
    config = configured(4, "smoke")
    test, _ = evaluate.held_out(dataclasses.replace(ASKED, data="own", puzzles=0), config)
    assert (test.table == own_test().table).all()
    other, _ = evaluate.held_out(dataclasses.replace(ASKED, data="generated:60-70"), config)
    assert ((other.rows(slice(None))[0] > 0).sum(1) >= 60).all()


def test_command(run, capsys):
    flags = [str(run), "--steps", "2", "--chains", "2", "--decodes", "3", "--seed", "1"]
    evaluate.main([*flags, "--output", "first.json"])
    first, printed = json.loads((run / "first.json").read_text()), capsys.readouterr().out
    for words in ("oracle (sees the answer)", "z = 0", "z random", "Langevin", "ms a puzzle", "by rating", "by blanks",
                  "lowest energy", "fewest violations", "vote on each cell", "the best (sees the answer)",
                  "left out by the split", "wrote first.json"):  # fmt: skip
        assert words in printed
    evaluate.main([*flags, "--at-once", "5"])
    second = json.loads((run / "evaluation.json").read_text())
    assert (first["energy"], first["decodes"], first["puzzles"]) == ("consistency", 3, len(own_test()))
    assert [c for c in first["columns"] if first["columns"][c].get("sees_the_answer")] == [
        "oracle", "Langevin, oracle", "decodes, oracle"
    ]  # fmt: skip
    for result in (first, second):  # all but the clock is the same, whatever the batches
        for column in (*evaluate.COLUMNS, "decodes"):
            assert result["columns"][column].pop("milliseconds") > 0
        assert result["hardware"] and result["commit"]
    assert first["columns"] == second["columns"]
    assert first["states"]["Langevin"] == pytest.approx(second["states"]["Langevin"], rel=1e-4)
    evaluate.main([*flags[:-1], "2", "--output", "other.json"])
    other = json.loads((run / "other.json").read_text())
    assert other["columns"]["z random"]["checksum"] != first["columns"]["z random"]["checksum"]
    assert other["columns"]["z = 0"]["checksum"] == first["columns"]["z = 0"]["checksum"]  # all puzzles, no noise


def test_equal_compute_and_the_energy_of_the_run(run, capsys):
    save(run / "checkpoint.pt", model_of(run=3))
    evaluate.main([str(run), "--steps", "1", "--chains", "2", "--puzzles", "3"])
    result = json.loads((run / "evaluation.json").read_text())
    assert result["energy"] == "norm" and result["puzzles"] == 3
    decode, step = result["flops"]["decode"], result["flops"]["step"]
    assert abs(result["decodes"] * decode - 2 * (step + decode)) <= decode / 2
    assert f"choice among {result['decodes']} random z" in capsys.readouterr().out
    evaluate.main([str(run), "--steps", "1", "--chains", "1", "--energy", "consistency", "--true-noise"])
    printed = capsys.readouterr().out
    assert "energy consistency" in printed and "noise sqrt(2 lr)" in printed


def test_chains_that_diverge_are_reported(run, capsys):
    evaluate.main([str(run), "--steps", "3", "--chains", "2", "--lr", "1e38", "--decodes", "1"])
    assert "not finite" in capsys.readouterr().out
    text = (run / "evaluation.json").read_text()
    assert "NaN" not in text and json.loads(text)["states"]["Langevin"]["total"] is None


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--steps", "0"], "--steps 0"), (["--chains", "-1"], "--chains -1"), (["--at-once", "0"], "--at-once 0"),
        (["--puzzles", "-1"], "--puzzles -1"), (["--lr", "nan"], "--lr nan"), (["--noise", "-1"], "--noise -1"),
        (["--seed", str(2**64)], "--seed 18446744073709551616"), (["--edges", "3", "1"], "--edges 3.0 1.0"),
        (["--edges", "1"], "rising"), (["--parts"], "--parts"), (["--output", "no/such.json"], "no/such.json"),
        (["--output", "a.txt"], ".json"), (["--data", "none.csv"], "none.csv"), (["--data", "none.npy"], "none.npy"),
        (["--data", "nonsense"], "--data nonsense: expected"), (["--data", "generated:9-1"], "9"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_one_line(run, capsys, flags, words):
    assert evaluate.main([str(run), *flags]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert not (run / "evaluation.json").exists()


def test_an_unusable_checkpoint_is_one_line(run, capsys):
    (run / "text.pt").write_text("no checkpoint")
    (run / "empty").mkdir()
    disk.save_checkpoint(run / "foreign.pt", {"experiment": "sudoku", "config": {"width": 3}, "model": {}})
    (run / "cut.pt").write_bytes((run / "checkpoint.pt").read_bytes()[:-2000])
    broken = model_of()
    broken.predictor.last.bias.data[0] = math.nan
    save(run / "broken.pt", broken)
    for name in ("none.pt", "text.pt", "empty", "foreign.pt", "cut.pt", "broken.pt"):
        assert evaluate.main([name]) == 2, name
        error = capsys.readouterr().err
        assert name in error and error.count("\n") == 1


def test_an_unknown_flag_ends_with_status_2(run, capsys):
    for flags in (["--chain", "3"], ["--steps", "many"], ["--energy", "free"], ["--parts", "train"], []):
        with pytest.raises(SystemExit) as error:
            evaluate.main([*([str(run)] if flags else []), *flags])
        assert error.value.code == 2


def test_a_file_that_cannot_be_written_is_one_line(run, capsys):
    (run / "folder.json").mkdir()
    flags = ["--puzzles", "1", "--steps", "1", "--chains", "1", "--decodes", "1"]
    assert evaluate.main([str(run), *flags, "--output", "folder.json"]) == 2
    error = capsys.readouterr().err
    assert "cannot write folder.json" in error and error.count("\n") == 1
