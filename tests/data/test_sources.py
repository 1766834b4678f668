"""data/sources.py: which rows are for training and which for the test, and random symmetries."""

from types import SimpleNamespace

import numpy as np
import pytest

from data import generate, kaggle_3m, sources, store, sudoku_extreme
from tests.data.puzzles import make, write_extreme

RATINGS = (0, 0, 0, 0, 0, 2, 2, 7, 30, 80)  # shares 0.5, 0.2, 0.1, 0.1, 0.1
KAGGLE_SIZES = (1_294_081, 812_419, 571_174, 244_902, 77_424)  # rows of the real file in each bucket


def config(**changes):
    return SimpleNamespace(**{"train_puzzles": 0, "train_per_bucket": 0, "edges": store.EXTREME} | changes)


def sizes(data, puzzles):
    return [len(rows) for rows in data.rows_by_bucket(puzzles)]


def numbered(ratings):
    """A set whose rows are told apart by their clue bits, which hold the row number."""
    table = np.zeros(len(ratings), store.ROW)
    table["rating"] = ratings
    table["clues"][:, :4] = np.arange(len(ratings), dtype="<u4").view(np.uint8).reshape(-1, 4)
    return store.PuzzleSet(table)


def numbers(puzzles):
    return np.ascontiguousarray(puzzles.table["clues"][:, :4]).view("<u4").ravel().tolist()


@pytest.fixture
def kaggle(monkeypatch):
    """Ten rows of each of three difficulties: row 0, 3, 6 ... are of the easiest."""
    monkeypatch.setattr(kaggle_3m, "load", lambda: numbered(np.resize([0, 0.5, 2], 30)))


@pytest.fixture
def extreme(monkeypatch):
    files = {True: numbered(np.resize(RATINGS, 1000)), False: numbered(np.resize(RATINGS, 400))}
    monkeypatch.setattr(sudoku_extreme, "load", lambda train: files[train])


def test_kaggle_trains_on_the_first_rows_of_a_bucket_and_tests_on_the_next(kaggle):
    data = sources.load(config(data="kaggle", edges=(0, 1, 3), train_per_bucket=4, test_per_bucket=3))
    assert numbers(data.train) == [0, 1, 2, 3, 4, 5, 8, 11]  # [0, 1): 0, 1, 3, 4; [1, 3): 2, 5, 8, 11
    assert numbers(data.test) == [6, 7, 9, 14, 17, 20]
    assert data.bucket_shares is None
    data = sources.load(config(data="kaggle", edges=(0, 1, 3), train_per_bucket=4, test_per_bucket=0))
    assert numbers(data.train) == [0, 1, 2, 3, 4, 5, 8, 11]
    assert sorted(numbers(data.train) + numbers(data.test)) == list(range(30))


def test_kaggle_tests_on_the_last_rows_of_a_bucket_and_trains_on_all_others(kaggle):
    data = sources.load(config(data="kaggle", edges=(0, 1, 3), test_per_bucket=2))
    assert numbers(data.test) == [26, 27, 28, 29]
    assert numbers(data.train) == list(range(26))


def test_the_easiest_are_exactly_those_of_difficulty_0(kaggle):
    data = sources.load(config(data="kaggle", edges=store.EASIEST, train_per_bucket=6, test_per_bucket=3))
    assert numbers(data.train) == [0, 3, 6, 9, 12, 15] and numbers(data.test) == [18, 21, 24]
    edge = store.PuzzleSet(np.zeros(2, store.ROW))
    edge.table["rating"] = 0, 0.1  # as float32
    assert store.rows_by_bucket(edge, store.EASIEST)[0].tolist() == [0]


def test_train_puzzles_takes_the_first_rows_of_the_file(kaggle, extreme, clean):
    data = sources.load(config(data="kaggle", edges=(0, 1, 3), test_per_bucket=2, train_puzzles=7))
    assert numbers(data.train) == list(range(7))
    data = sources.load(config(data="extreme", test_per_bucket=30, train_puzzles=600))
    assert numbers(data.train) == list(range(600))
    write_extreme(clean / "x.csv", make(100, ratings=RATINGS))
    most = sources.load(config(data="x.csv", test_per_bucket=1))
    few = sources.load(config(data="x.csv", test_per_bucket=1, train_puzzles=20))
    assert np.array_equal(few.train.table, most.train.table[:20])


def test_kaggle_sizes(monkeypatch):
    """The real bucket sizes: 2,997,500 training rows, and the pools of the reverse curriculum."""
    ratings = np.repeat(np.float32([0.5, 1, 2.9, 3, 8.5]), KAGGLE_SIZES)
    np.random.default_rng(0).shuffle(ratings)
    whole = store.PuzzleSet(ratings.view([("rating", "<f4")]))  # the boards are not looked at
    monkeypatch.setattr(kaggle_3m, "load", lambda: whole)
    data = sources.load(config(data="kaggle", edges=store.KAGGLE, test_per_bucket=500))
    assert sizes(data, data.train) == [1_293_581, 811_919, 570_674, 244_402, 76_924]
    assert len(data.train) == 2_997_500 and sizes(data, data.test) == [500] * 5
    pools = np.cumsum(sizes(data, data.train)[::-1])  # difficulty >= 4, >= 3, >= 2, >= 1, all
    assert pools[1:].tolist() == [321_326, 892_000, 1_703_919, 2_997_500]


def test_extreme_tests_on_random_rows_of_the_test_file(extreme):
    data = sources.load(config(data="extreme", test_per_bucket=30))
    assert data.bucket_shares == pytest.approx([0.5, 0.2, 0.1, 0.1, 0.1]) and data.edges == store.EXTREME
    assert sizes(data, data.test) == [30] * 5 and len(data.train) == 1000
    easiest = numbers(data.test.subset(data.rows_by_bucket(data.test)[0]))
    assert easiest != [row for row in range(400) if row % 10 < 5][:30]  # not the first ones
    again = sources.load(config(data="extreme", test_per_bucket=30))
    assert np.array_equal(again.test.table, data.test.table)
    assert sizes(data, sources.load(config(data="extreme", test_per_bucket=0)).test) == [200, 80, 40, 40, 40]


def test_extremes_random_test_rows_stay_the_same(extreme):
    """Kept results depend on this choice."""
    data = sources.load(config(data="extreme", test_per_bucket=3))
    assert numbers(data.test) == [11, 19, 37, 38, 79, 96, 106, 165, 198, 207, 210, 333, 358, 387, 389]


def test_extreme_test_divides_the_test_file(extreme):
    data = sources.load(config(data="extreme-test", train_puzzles=100, test_per_bucket=0))
    assert numbers(data.train) == list(range(100)) and numbers(data.test) == list(range(100, 400))
    assert data.bucket_shares == pytest.approx([0.5, 0.2, 0.1, 0.1, 0.1])
    data = sources.load(config(data="extreme-test", train_puzzles=100, test_per_bucket=10))
    assert sizes(data, data.test) == [10] * 5 and min(numbers(data.test)) >= 100
    data = sources.load(config(data="extreme-test", train_puzzles=20, train_per_bucket=5, test_per_bucket=0))
    assert sizes(data, data.train) == [5, 4, 2, 2, 2] and max(numbers(data.train)) < 20


def test_csv_tests_on_a_fifth_at_most(clean):
    write_extreme(clean / "x.csv", make(1000, ratings=RATINGS))
    data = sources.load(config(data="x.csv", test_per_bucket=30, train_per_bucket=60))
    assert sizes(data, data.test) == [30, 30, 20, 20, 20] and sizes(data, data.train) == [60] * 5
    assert len(store.exclude(data.train, data.test)) == 300
    data = sources.load(config(data="x.csv", test_per_bucket=0))
    assert sizes(data, data.test) == [100, 40, 20, 20, 20] and len(data.train) == 800


def test_csv_trains_on_no_equivalent_of_a_test_puzzle(clean):
    puzzles = make(50)
    moved = store.from_arrays(*sources.symmetries(*puzzles.rows(np.arange(50)), np.random.default_rng(5)), [0] * 50)
    write_extreme(clean / "x.csv", store.PuzzleSet(np.concatenate([puzzles.table, moved.table])))
    data = sources.load(config(data="x.csv", edges=(0, 1), test_per_bucket=10))
    assert len(data.test) == 10 and len(data.train) == len(store.exclude(data.train, data.test))
    assert len(data.train) <= 100 - 18  # most test puzzles have their equivalent among the training rows


def clues(puzzles):
    return (puzzles.rows(np.arange(len(puzzles)))[0] > 0).sum(1)


@pytest.mark.parametrize(
    "data, edges, expected",
    [
        ("generated", store.EXTREME, [67, 65, 63, 61, 59]),
        ("generated:50-58", (0, 1, 2), [58, 50]),
        ("generated:50-58", (0, 1), [54]),
    ],
)
def test_generated_has_one_number_of_clues_in_each_bucket(data, edges, expected):
    data = sources.load(config(data=data, edges=edges, train_puzzles=10, test_per_bucket=3))
    assert len(data.train) == 10 and len(data.test) == 3 * len(expected)
    for part in (data.train, data.test):
        assert [set(clues(part.subset(rows))) for rows in data.rows_by_bucket(part)] == [{n} for n in expected]
    assert len(store.exclude(data.train, data.test)) == 10


def csv_of(path, puzzles, rows):
    puzzle, solution = puzzles.rows(rows)
    lines = [",".join(["".join(map(str, row)) for row in pair] + ["5"]) for pair in zip(puzzle, solution)]
    path.write_text("\n".join(["question,answer,rating", *lines]))
    return str(path)


def test_hard_puzzles_are_kept_apart_from_every_test(tmp_path):
    """A tenth is held out; what is in the file to keep apart, in any symmetric form, is in neither part."""
    hard = generate.generate(120, clues="minimal", seed=11, progress=False)
    moved = store.from_arrays(*sources.symmetries(*hard.rows(np.arange(40)), np.random.default_rng(0)), 0)
    files = csv_of(tmp_path / "hard.csv", hard, np.arange(120)), csv_of(tmp_path / "apart.csv", moved, np.arange(40))
    asked = {"data": "minimal", "train_puzzles": 50, "test_per_bucket": 30, "hard": files[0], "apart": files[1]}
    data = sources.load(config(**asked))
    assert data.edges == (0, 1, 2, 3)
    found = [store.fingerprints(part.subset(np.flatnonzero(part.rating == rating))) for part, rating in
             ((data.train, 1), (data.test, 2))]  # fmt: skip
    assert set(store.fingerprints(hard)[40:].tolist()) == {*found[0].tolist(), *found[1].tolist()}
    assert not {*found[0].tolist()} & {*found[1].tolist()} and 1 <= len(found[1]) <= 20
    assert (found[1] % np.uint64(10) == 0).all() and sizes(data, data.train)[:2] == [50, len(found[0])]
    generated = sources.load(config(**asked | {"hard": "generated", "apart": "", "train_puzzles": 100}))
    assert sizes(generated, generated.train)[1] > 30


def test_minimal_tests_on_other_puzzles_than_it_trains_on():
    data = sources.load(config(data="minimal", train_puzzles=60, test_per_bucket=30))
    easy, hard = (data.test.subset(rows) for rows in data.rows_by_bucket(data.test))
    assert len(data.train) == 60 and len(easy) == len(hard) == 30
    assert set(clues(easy)) == {45} and max(clues(hard)) < 30 and max(clues(data.train)) < 30
    assert len(store.exclude(data.train, data.test)) == 60


def test_a_config_without_buckets():
    with pytest.raises(SystemExit, match=r"--data kaggle: this experiment has no buckets .* use --data minimal"):
        sources.load(SimpleNamespace(data="kaggle", train_puzzles=5, test_per_bucket=5))


def test_generated_counts():
    limits = {"train_per_bucket": 4, "train_puzzles": 6, "test_per_bucket": 2}
    data = sources.load(config(data="generated:60-60", edges=(0, 1, 2), **limits))
    assert sizes(data, data.train) == [3, 3] and sizes(data, data.test) == [2, 2]


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({"data": "kagle"}, "--data kagle: expected generated, generated:50-58, minimal, kaggle, extreme,"),
        ({"data": "kaggle", "test_per_bucket": 0}, "no row is left for training; give a lower --test-per-bucket"),
        ({"data": "kaggle", "train_per_bucket": 99}, "no row is left for the test; give a lower --train-puzzles or"),
        ({"data": "extreme-test", "train_puzzles": 400, "test_per_bucket": 0}, "no row is left for the test"),
        ({"data": "extreme-test", "train_puzzles": 500, "test_per_bucket": 0}, "no row is left for the test"),
        ({"data": "extreme-test", "test_per_bucket": 5}, "no row is left for the test; give a lower --train-puzzles"),
        ({"data": "generated", "test_per_bucket": 0}, "--data generated: expected a --test-per-bucket above 0"),
        ({"data": "minimal", "train_puzzles": 0}, "--data minimal: expected --train-puzzles and --test-per-bucket"),
        ({"data": "minimal", "train_puzzles": 5, "test_per_bucket": 0}, "--data minimal: expected --train-puzzles"),
        ({"data": "generated:58-50"}, "--data generated:58-50: expected the lower clue count first"),
        ({"data": "generated:50"}, "--data generated:50: expected two clue counts"),
        ({"data": "generated:"}, "--data generated:: expected two clue counts"),
        ({"data": "generated:5-10"}, "clues: expected 20 to 81"),
        ({"data": "generated", "edges": (1.0,)}, "--edges 1.0: expected the limits of at least one bucket"),
        ({"data": "kaggle", "edges": (20, 30)}, "or other --edges"),
        ({"data": "gone.csv"}, "gone.csv: there is no such file"),
    ],
)
def test_a_config_without_training_or_test_rows(kaggle, extreme, clean, changes, expected):
    with pytest.raises(SystemExit) as caught:
        sources.load(config(**{"test_per_bucket": 10} | changes))
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_symmetries_keep_units_and_transpose_half_of_the_time():
    """The clues of one unit must again be those of one unit: a box stays a box, a row may become a column."""
    solution = make(400).rows(np.arange(400))[1]
    kinds = {"box": 0, "row": 0, "column": 0}
    for unit in (np.arange(9), np.arange(81).reshape(9, 9)[3:6, 6:9].ravel()):
        puzzle = np.zeros_like(solution)
        puzzle[:, unit] = solution[:, unit]
        moved, moved_solution = sources.symmetries(puzzle, solution, np.random.default_rng(1))
        assert np.array_equal(moved[moved > 0], moved_solution[moved > 0]) and ((moved > 0).sum(1) == 9).all()
        for board in moved:
            rows, columns = np.divmod(np.flatnonzero(board), 9)
            kinds["row"] += len(set(rows)) == 1
            kinds["column"] += len(set(columns)) == 1
            kinds["box"] += len(set(rows // 3 * 3 + columns // 3)) == 1
    assert kinds["box"] == 400 and kinds["row"] + kinds["column"] == 400
    assert 150 < kinds["column"] < 250


def test_symmetries_move_everything_and_depend_on_the_seed():
    puzzle, solution = make(300).rows(np.arange(300))
    tiled = np.tile(puzzle[:1], (300, 1)), np.tile(solution[:1], (300, 1))
    moved, moved_solution = sources.symmetries(*tiled, np.random.default_rng(1))
    assert len(np.unique(moved, axis=0)) == 300 and moved.dtype == puzzle.dtype
    for cell in range(81):
        assert set(moved_solution[:, cell]) == set(range(1, 10))
    diagonal = solution * np.eye(9, dtype=np.uint8).ravel()  # rows and columns move independently
    moved_diagonal, _ = sources.symmetries(diagonal, solution, np.random.default_rng(1))
    assert sum(set(np.flatnonzero(board)) == set(range(0, 81, 10)) for board in moved_diagonal) < 10
    again, _ = sources.symmetries(*tiled, np.random.default_rng(1))
    other, _ = sources.symmetries(*tiled, np.random.default_rng(2))
    assert np.array_equal(moved, again) and not np.array_equal(moved, other)
