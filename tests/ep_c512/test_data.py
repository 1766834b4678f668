"""Text as tokens: sources, the cache, windows, the bigram; the grammar's stories."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from data import stories, tinystories
from ep_c512 import data, run, train

CONFIG = run.configured(train.Config, "smoke")
RUN = SimpleNamespace(rank=0, world=1, device=torch.device("cpu"))


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(data, "GENERATED", 200)


def test_stories_are_the_same_for_a_seed_and_whole():
    text = stories.text(50, 3)
    assert text == stories.text(50, 3) != stories.text(50, 4)
    parts = text.split(f"\n{stories.END}\n")
    assert len(parts) == 51 and parts[-1] == "" and len(set(parts)) == 51
    assert not any(set("{}_|") & set(part) for part in parts)
    names = stories.GIRLS + stories.BOYS
    for part in parts[:-1]:
        assert part.endswith(".") and " a apple" not in part and any(name in part for name in names)


def test_a_story_keeps_its_words():
    """Whoever is in it stays in it: the hero's name comes back in the last sentences."""
    for part in stories.text(50, 5).split(stories.END)[:-1]:
        hero = next(
            word for word in part.replace(",", " ").replace(".", " ").split() if word in stories.GIRLS + stories.BOYS
        )
        assert part.rindex(hero) > len(part) / 2


def test_the_tokens_are_the_text():
    text = data.load(CONFIG, RUN)
    tokenizer = Tokenizer.from_str(text.tokenizer)
    assert tokenizer.decode(text.train.tolist(), skip_special_tokens=False) == stories.text(200, 1)
    assert tokenizer.decode(text.validation.tolist(), skip_special_tokens=False) == stories.text(10, 2)
    assert text.train.max() < CONFIG.vocabulary and (text.train == tokenizer.token_to_id(data.END)).sum() == 200


def test_what_was_made_is_used_again_and_made_again_when_damaged(cache, monkeypatch, capsys):
    config = replace(CONFIG, vocabulary=310)
    first = data.load(config, RUN)
    folder = next(cache.glob("text-generated-310-*"))
    monkeypatch.setattr(data, "train_tokenizer", None)  # would fail if it were made again
    assert np.array_equal(data.load(config, RUN).train, first.train)
    monkeypatch.undo()
    monkeypatch.setattr(data, "GENERATED", 200)
    content = bytearray((folder / "train.npy").read_bytes())
    content[-1] ^= 1
    (folder / "train.npy").write_bytes(content)
    assert np.array_equal(data.load(config, RUN).train, first.train)
    assert "damaged" in capsys.readouterr().err
    (folder / "validation.npy").write_bytes(b"x")
    assert np.array_equal(data.load(config, RUN).validation, first.validation)
    monkeypatch.setattr(data, "GENERATED", 201)
    assert len(data.load(config, RUN).train) > len(first.train)


def test_a_text_file_is_split_by_stories(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("".join(f"Story number {i}.\n{data.END}\n" for i in range(60)))
    text = data.load(replace(CONFIG, data=str(path)), RUN)
    tokenizer = Tokenizer.from_str(text.tokenizer)
    train_text, validation = (tokenizer.decode(side.tolist()) for side in (text.train, text.validation))
    assert [f"number {i}." in validation for i in (19, 39, 59)] == [True] * 3 and "number 20." not in validation
    assert [f"number {i}." in train_text for i in (18, 20, 58)] == [True] * 3 and "number 19." not in train_text
    path.write_text("".join(f"Tale number {i}.\n{data.END}\n" for i in range(60)))  # the same name, another text
    assert "Tale" in tokenizer.from_str((other := data.load(replace(CONFIG, data=str(path)), RUN)).tokenizer).decode(
        other.train.tolist()
    )


def decoded(text):
    tokenizer = Tokenizer.from_str(text.tokenizer)
    return [tokenizer.decode(side.tolist()) for side in (text.train, text.validation)]


def test_of_a_text_without_stories_the_end_is_for_validation(tmp_path):
    path = tmp_path / "book.md"
    path.write_text("".join(f"This is line {i}.\n" for i in range(100)))
    train_text, validation = decoded(data.load(replace(CONFIG, data=str(path)), RUN))
    assert train_text + validation == path.read_text() and validation.startswith("This is line 9")
    assert 3 <= validation.count("line") <= 5


def test_a_text_for_validation_can_be_given(tmp_path):
    one, other = tmp_path / "train.txt", tmp_path / "valid.txt"
    one.write_text(f"First text.\n{data.END}\n" * 30)
    other.write_text("Second text.\n" * 3)
    config = replace(CONFIG, data=str(one), validation_data=str(other))
    assert decoded(data.load(config, RUN))[1] == other.read_text()
    other.write_text("Third text.\n" * 3)
    assert decoded(data.load(config, RUN))[1] == other.read_text()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("bad.txt", b"good \xff bad", "byte 5 is not UTF-8"),
        ("none.txt", None, "No such file.*expected tinystories, generated or the path of a text file"),
    ],
)
def test_a_wrong_text_is_explained(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SystemExit, match=message) as error:
        data.load(replace(CONFIG, data=str(path)), RUN)
    assert str(path) in str(error.value)


def test_too_small_a_vocabulary_or_text_is_explained(tmp_path):
    with pytest.raises(SystemExit, match="--vocabulary 200"):
        data.load(replace(CONFIG, vocabulary=200), RUN)
    path = tmp_path / "short.txt"
    path.write_text(f"A.{data.END}" * 20)
    with pytest.raises(SystemExit, match="expected more than --length"):
        data.load(replace(CONFIG, data=str(path), length=64), RUN)


def test_without_a_network_tinystories_says_what_to_do(monkeypatch):
    def refuse(name):
        raise OSError("no route")

    monkeypatch.setattr(tinystories, "download", refuse)
    with pytest.raises(SystemExit, match="--data generated needs no network") as error:
        data.load(replace(CONFIG, data="tinystories"), RUN)
    assert tinystories.FILES["train"] in str(error.value)


def test_batches_are_windows_of_the_text_and_are_shared_among_processes():
    text = data.load(CONFIG, RUN)
    tokens, targets = text.batch(CONFIG, RUN, 3)
    assert tokens.shape == targets.shape == (CONFIG.batch, CONFIG.length)
    assert torch.equal(tokens[:, 1:], targets[:, :-1])
    flat = " ".join(map(str, text.train.tolist()))
    assert all(" ".join(map(str, row.tolist())) in flat for row in tokens)
    assert not torch.equal(tokens, text.batch(CONFIG, RUN, 4)[0])
    shares = [text.batch(CONFIG, SimpleNamespace(**vars(RUN) | {"rank": r, "world": 2}), 3)[0] for r in (0, 1)]
    assert torch.equal(torch.cat(shares), tokens)


def test_validation_is_the_start_of_its_text():
    text = data.load(CONFIG, RUN)
    parts = list(text.held_out(CONFIG, RUN.device, 6))
    tokens, targets = (torch.cat(part) for part in zip(*parts))
    assert [len(part[0]) for part in parts] == [4, 2]
    assert tokens.flatten().tolist() == text.validation[: 6 * 8].tolist()
    assert targets.flatten().tolist() == text.validation[1 : 6 * 8 + 1].tolist()


def test_bigram_by_hand(monkeypatch):
    """A text in which one pair decides: after 0 comes 1 or 2 equally, after 1 and 2 comes 0."""
    random = np.random.default_rng(0)
    pairs = np.stack([np.zeros(20_000, int), random.integers(1, 3, 20_000)], 1).ravel().astype(np.uint16)
    text = data.Text(pairs[:30_000], pairs[30_000:], "", 4)
    config = replace(CONFIG, validation_windows=1000)
    assert math.isclose(text.bigram(config), math.log(2) / 2, rel_tol=0.01)
    monkeypatch.setattr(data, "CHUNK", 77)
    assert math.isclose(text.bigram(config), math.log(2) / 2, rel_tol=0.01)
    text.validation[80:] = 3  # never seen, but not in the first 10 windows of 8
    assert math.isclose(text.bigram(replace(config, validation_windows=9)), math.log(2) / 2, rel_tol=0.05)
    assert text.bigram(config) > 5
