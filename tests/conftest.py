"""Tests compute on one thread, so that a busy machine is only slow, and write to folders of their own."""

import os
import signal

import pytest
import torch

signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job starts with SIGINT ignored
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """Generated puzzles go to a folder that is empty at first, so a user's own cache cannot help a test."""
    folder = tmp_path_factory.mktemp("puzzles")
    os.environ["SUDOKU_DATA"] = str(folder)
    return folder


@pytest.fixture
def clean(tmp_path, monkeypatch):
    """A folder to run in, with nothing in it; a run that ended in an error leaves no signal handlers behind."""
    monkeypatch.chdir(tmp_path)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield tmp_path
    for number, handler in before.items():
        signal.signal(number, handler)
