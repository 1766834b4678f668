"""The fetchers of the real sets, with stand-ins for the clients of their hubs, and without a network."""

import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from data import kaggle_3m, kaggle_9m, sources, store, sudoku_extreme
from tests.data.puzzles import lines, make, write_extreme, write_kaggle
from tests.experiments import ROOT

RATINGS = (0, 0, 0, 0, 0, 2, 2, 7, 30, 80)  # shares 0.5, 0.2, 0.1, 0.1, 0.1


@pytest.fixture(autouse=True)
def cache_here(clean, monkeypatch):
    monkeypatch.setenv("SUDOKU_DATA", str(clean / "cache"))


@pytest.fixture
def extreme(clean, monkeypatch):
    """A small sudoku-extreme on a hub of our own; three test puzzles are in the training file under a symmetry."""
    test, train = make(400, seed=1, ratings=RATINGS), make(1000, seed=2, ratings=RATINGS)
    moved = sources.symmetries(*test.rows([3, 50, 399]), np.random.default_rng(0))
    train = store.PuzzleSet(np.concatenate([train.table, store.from_arrays(*moved, [0, 0, 0]).table]))
    write_extreme(clean / "test.csv", test)
    write_extreme(clean / "train.csv", train)
    asked = []

    def download(repo_id, filename, repo_type, etag_timeout):
        assert (repo_id, repo_type) == ("sapientinc/sudoku-extreme", "dataset")
        asked.append(filename)
        return str(clean / filename)

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda **_: None)
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", lambda *_, **__: None)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr(sudoku_extreme, "ROWS", {"train": 1003, "test": 400})
    return asked


@pytest.fixture
def kaggle(clean, monkeypatch):
    puzzles = make(2000, seed=3, ratings=(0, 0.5, 1.2, 2.9, 3, 4.4, 8))
    write_kaggle(clean / "three.csv", puzzles)
    asked = []

    def download(handle, path):
        asked.append((handle, path))
        return str(clean / "three.csv")

    monkeypatch.setattr("kagglehub.dataset_download", download)
    monkeypatch.setattr(kaggle_3m, "ROWS", 2000)
    return asked


def unplugged(*_, **__):
    raise ConnectionError("no route\nto the hub")


def test_extreme_is_fetched_and_converted_once(extreme):
    train, test = sudoku_extreme.load(train=True), sudoku_extreme.load(train=False)
    assert len(train) == 1000 and len(test) == 400 and train.meta["left_out"] == 3
    assert len(store.exclude(train, test)) == 1000
    assert extreme == ["test.csv", "train.csv"]
    assert isinstance(sudoku_extreme.load(train=True).table, np.memmap) and len(extreme) == 2


def test_extreme_from_files_fetched_by_hand(extreme, clean, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.hf_hub_download", unplugged)
    sudoku_extreme.main(["--train-csv", "train.csv", "--test-csv", "test.csv"])
    printed = capsys.readouterr().out
    assert "3 training rows are in the test file" in printed
    assert "train: 1,000 puzzles; by rating 0: 500, 1-2: 200, 3-10: 100" in printed
    assert len(sudoku_extreme.load(train=True)) == 1000  # an experiment now finds them


def test_a_new_test_file_makes_the_training_set_again(extreme, clean, capsys):
    sudoku_extreme.load(train=True)
    write_extreme(clean / "test.csv", make(400, seed=9))
    sudoku_extreme.load(train=False, csv="test.csv")
    assert len(sudoku_extreme.load(train=True)) == 1003
    assert "making it again" in capsys.readouterr().err


def test_a_download_that_fails_is_one_line(monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", unplugged)
    monkeypatch.setattr("kagglehub.dataset_download", unplugged)
    expected = {
        lambda: sudoku_extreme.load(train=True): ("sapientinc/sudoku-extreme, test.csv", "--test-csv PATH"),
        kaggle_3m.load: ("radcliffe/3-million-sudoku-puzzles-with-ratings, ", "kaggle_3m.py --csv PATH"),
        kaggle_9m.load: ("rohanrao/sudoku, sudoku.csv", "kaggle_9m.py --csv PATH"),
    }
    for load, (what, remedy) in expected.items():
        with pytest.raises(SystemExit) as caught:
            load()
        message = str(caught.value)
        assert message.startswith(what) and remedy in message and "\n" not in message
        assert "the download failed (ConnectionError: no route to the hub); run it again" in message
        assert "--data file.csv" in message


@pytest.fixture
def no_network(clean, monkeypatch):
    """All requests go to a proxy at a port that refuses connections."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound, but it does not listen
        for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{unused.getsockname()[1]}")
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HF_HOME", str(clean / "hub"))
        monkeypatch.setenv("KAGGLEHUB_CACHE", str(clean / "kaggle"))
        yield


def test_extreme_without_a_network(no_network):
    """A new process, because huggingface_hub reads its settings on import; its own retries take 23 s."""
    start = time.perf_counter()
    result = subprocess.run([sys.executable, ROOT / "data" / "sudoku_extreme.py"], capture_output=True, text=True)
    assert time.perf_counter() - start < 12  # most of it is importing
    assert result.returncode == 1 and result.stderr.count("\n") == 1 and "Traceback" not in result.stderr
    assert "the download failed" in result.stderr and "--test-csv PATH" in result.stderr


def test_kaggle_without_a_network(no_network):
    start = time.perf_counter()
    with pytest.raises(SystemExit, match=r"the download failed .* --csv PATH"):
        kaggle_3m.load()
    assert time.perf_counter() - start < 6


def test_a_file_that_the_hub_client_has_needs_no_network(extreme, clean, monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", unplugged)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda **_: str(clean / "test.csv"))
    assert len(sudoku_extreme.load(train=False)) == 400


def test_a_client_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    with pytest.raises(SystemExit, match=r"the download failed .*ModuleNotFoundError.*kagglehub"):
        kaggle_3m.load()


def test_a_file_with_another_number_of_rows(extreme, kaggle, monkeypatch, clean):
    monkeypatch.setattr(sudoku_extreme, "ROWS", {"train": 1003, "test": 401})
    with pytest.raises(ValueError, match=r"test\.csv: expected 401 rows, found 400: .*; delete it and fetch it again"):
        sudoku_extreme.load(train=False)
    monkeypatch.setattr(kaggle_3m, "ROWS", 3_000_000)
    with pytest.raises(ValueError, match=r"three\.csv: expected 3,000,000 rows, found 2,000"):
        kaggle_3m.load()
    assert not (clean / "cache").exists()


def test_a_wrong_file_by_hand_is_an_error_without_a_traceback(clean):
    write_extreme(clean / "test.csv", make(3))
    with pytest.raises(SystemExit, match="expected 422,786 rows, found 3"):
        sudoku_extreme.main(["--test-csv", "test.csv"])
    command = [sys.executable, ROOT / "data" / "kaggle_9m.py", "--csv", "gone.csv"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (
        1,
        "gone.csv: there is no such file; expected a CSV file's path\n",
    )
    assert not (clean / "cache").exists()


def test_kaggle_is_fetched_and_converted_once(kaggle, clean):
    assert len(kaggle_3m.load()) == 2000 and isinstance(kaggle_3m.load().table, np.memmap)
    assert kaggle == [("radcliffe/3-million-sudoku-puzzles-with-ratings", "sudoku-3m.csv")]


def test_kaggles_nine_million(clean, monkeypatch, capsys):
    body = [f"{puzzle},{solution}" for puzzle, solution, _ in lines(make(30), blank="0")]
    (clean / "nine.csv").write_text("\n".join(["puzzle,solution", *body]))
    monkeypatch.setattr(kaggle_9m, "ROWS", 30)
    kaggle_3m.main(["--csv", "nine.csv"], kaggle_9m.__doc__, kaggle_9m.load)
    assert capsys.readouterr().out == "30 puzzles, rated 0 to 0\n"
    assert len(kaggle_9m.load()) == 30
