"""Text for ep_c512: TinyStories, any text file, or stories that a grammar makes; as tokens of a byte-level BPE.

The tokenizer is trained on the training text. Both are kept beside the generated puzzles (data/cache, or the folder
that SUDOKU_DATA names) and made again where the text, the vocabulary or this file's VERSION differ.
"""

import itertools
import os
import sys
import zlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

import common
from data import stories, tinystories
from data.store import cache_folder
from plumbing import disk

VERSION = 1  # raise it when the same text gives other tokens
END = tinystories.END
GENERATED = 8_000  # stories for training: 4.4 MB
VALIDATION_EVERY = 20  # of a text file, every twentieth story is for validation
SAMPLE = 50_000_000  # characters that the tokenizer is trained on, at most
CHUNK = 4_000_000  # characters that are encoded at once
FEWEST = 257  # tokens: the bytes and END


@dataclass
class Text:
    """Tokens of both sides, one after the other; END stands between stories."""

    train: np.ndarray  # uint16
    validation: np.ndarray
    tokenizer: str  # JSON
    vocabulary: int

    def batch(self, config, run, step):
        """(tokens, targets), int64 [n, T], of this step: this process's share of windows drawn by (seed, step)."""
        starts = common.random_at(config, step).integers(len(self.train) - config.length, size=config.batch)
        mine = slice(run.rank * config.batch // run.world, (run.rank + 1) * config.batch // run.world)
        return self.windows(self.train, starts[mine], config.length, run.device)

    def held_out(self, config, device, most):
        """Batches of the validation text's first windows, one beside the other, `most` of them at most."""
        count = self.windows_held_out(config, most)
        starts = np.arange(count) * config.length
        for first in range(0, count, config.batch):
            yield self.windows(self.validation, starts[first : first + config.batch], config.length, device)

    def windows_held_out(self, config, most):
        return min(most, (len(self.validation) - 1) // config.length)

    @staticmethod
    def windows(tokens, starts, length, device):
        rows = torch.from_numpy(tokens[starts[:, None] + np.arange(length + 1)].astype(np.int64)).to(device)
        return rows[:, :-1], rows[:, 1:]

    def bigram(self, config):
        """Cross-entropy, on the same windows that a model is validated on, of the pairs of tokens counted in training,
        smoothed towards single tokens; of several strengths the best one."""
        v, count = self.vocabulary, self.windows_held_out(config, config.validation_windows) * config.length
        first, second = (self.validation[at : at + count].astype(np.int64) for at in (0, 1))
        single = np.bincount(self.train, minlength=v) + 0.1
        single = single / single.sum()
        pairs = np.zeros(v * v, np.int32)
        for start in range(0, len(self.train) - 1, CHUNK):
            part = self.train[start : start + CHUNK + 1].astype(np.int64)
            pairs += np.bincount(part[:-1] * v + part[1:], minlength=v * v).astype(np.int32)
        seen = pairs[first * v + second]
        before = np.bincount(self.train[:-1], minlength=v)[first]
        return min(
            float(-np.log((seen + strength * single[second]) / (before + strength)).mean())
            for strength in (0.3, 1, 3, 10, 30, 100)
        )


def load(config, run):
    """The text of this config as tokens; the run notes its checksum, for its next --resume."""
    try:
        text = common.fetched_once(run, lambda: cached(config))
    except ValueError as error:
        raise SystemExit(str(error)) from None
    run.data = [zlib.crc32(text.train), zlib.crc32(text.validation)]
    for side in ("train", "validation"):
        if (found := len(getattr(text, side))) <= config.length:
            raise SystemExit(f"--data {config.data}: {found} tokens for {side}, expected more than --length")
    return text


def sources(config):
    """(training text, validation text): functions, as reading them may take long"""
    name = config.data
    if name == "generated":
        return lambda: stories.text(GENERATED, 1), lambda: stories.text(GENERATED // VALIDATION_EVERY, 2)
    if name == "tinystories":
        return lambda: read(tinystories.path("train")), lambda: read(tinystories.path("validation"))
    if config.validation_data:
        return lambda: read(name), lambda: read(config.validation_data)
    train, held_out = split(read(name))
    return lambda: train, lambda: held_out


def split(text):
    """(text for training, text for validation): every twentieth story, or the end of a text that has no stories"""
    parts = [part for part in text.split(END) if part.strip()]
    if len(parts) < VALIDATION_EVERY:
        cut = len(text) - len(text) // VALIDATION_EVERY
        cut = text.find("\n", cut) + 1 or cut
        return text[:cut], text[cut:]
    held_out = parts[VALIDATION_EVERY - 1 :: VALIDATION_EVERY]
    del parts[VALIDATION_EVERY - 1 :: VALIDATION_EVERY]
    return END.join(parts) + END, END.join(held_out) + END


def read(path):
    try:
        text = Path(path).expanduser().read_bytes().decode()
    except OSError as error:
        expected = "tinystories, generated or the path of a text file"
        raise ValueError(f"{path}: {error.strerror}; expected {expected}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: byte {error.start} is not UTF-8; convert the file, or give another one") from None
    return text


def identity(config):
    """What the tokens are made of: when this changes, they are made again."""
    name = config.data
    known = {"version": VERSION, "vocabulary": config.vocabulary, "data": name}
    if name == "generated":
        return known | {"stories": GENERATED, "grammar": stories.VERSION}
    if name == "tinystories":
        return known
    files = [name, config.validation_data] if config.validation_data else [name]
    return known | {"data": "file", "crc32": [zlib.crc32(read(file).encode()) for file in files]}


def cached(config):
    if not FEWEST <= config.vocabulary <= 2**16:
        raise ValueError(f"--vocabulary {config.vocabulary}: expected from {FEWEST} to {2**16} tokens")
    made_by = identity(config)
    key = f"{zlib.crc32(repr(sorted(made_by.items())).encode()):08x}"
    folder = cache_folder() / f"text-{Path(config.data).stem[:40]}-{config.vocabulary}-{key}"
    if (text := kept(folder, made_by)) is not None:
        return text
    train, validation = (source() for source in sources(config))
    tokenizer = train_tokenizer(train[:SAMPLE], config.vocabulary)
    text = Text(encode(tokenizer, train), encode(tokenizer, validation), tokenizer.to_str(), config.vocabulary)
    try:
        for name in ("train", "validation"):
            disk.replace(folder / f"{name}.npy", partial(np.save, arr=getattr(text, name)))
        disk.write_json(folder / "made.json", made_by | checksums(text) | {"tokenizer": text.tokenizer})
    except OSError as error:
        print(f"{folder}: the tokens cannot be kept for the next run ({error.strerror})", file=sys.stderr)
    return text


def kept(folder, made_by):
    """The text in this folder; None where there is none, or not all of it."""
    made = disk.read_json(folder / "made.json")
    if not isinstance(made, dict) or {name: made.get(name) for name in made_by} != made_by:
        return None
    try:
        sides = [np.load(folder / f"{name}.npy") for name in ("train", "validation")]
    except (OSError, ValueError):
        sides = None
    if sides and all(side.dtype == np.uint16 and side.ndim == 1 for side in sides):
        text = Text(*sides, made["tokenizer"], made_by["vocabulary"])
        if checksums(text) == {name: made.get(name) for name in checksums(text)}:
            return text
    print(f"{folder}: damaged; making it again", file=sys.stderr)
    return None


def checksums(text):
    return {f"{name}_crc32": zlib.crc32(getattr(text, name)) for name in ("train", "validation")}


def train_tokenizer(text, vocabulary):
    """Byte-level BPE: any text can be encoded."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(pieces(text, 100_000), trainer)
    return tokenizer


def pieces(text, size):
    """The text in pieces that end with a line, where there are lines."""
    start = 0
    while start < len(text):
        end = text.rfind("\n", start, start + size) + 1
        end = end if end > start and start + size < len(text) else start + size
        yield text[start:end]
        start = end


def encode(tokenizer, text):
    """Pieces of the text on all cores, as many at a time as there are cores."""
    parts, waiting = [np.empty(0, np.uint16)], pieces(text, CHUNK)
    while some := list(itertools.islice(waiting, os.cpu_count())):
        parts += [np.array(found.ids, np.uint16) for found in tokenizer.encode_batch(some)]
    return np.concatenate(parts)
