"""Trains a transformer of a few hundred parameters to add ten-digit numbers: the log's recipe, in plain PyTorch.

python -m addition.train --run-name repro_456_s43 --pos-rank 3 --qkv-rank 3 --attn-out-rank 2 --ffn-rank 3 \\
  --use-rmsnorm --tie-qkv shareA_tieKV --train-steps 54000 --seed 43

Data, model, recipe and loop are in this file. For a recipe of your own, override a method of Recipe, as
reliable.py does; python -m addition.fast.sweep trains many seeds of any recipe at once.
"""

import copy
import math
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
import tyro

from addition import plots
from addition import run as outputs
from common import cosine_rate, from_flags
from plumbing import disk

# ---------------------------------------------------------------- data

DIGITS = 10  # of an operand; the sum has one more
LIMIT = 10**DIGITS
POWERS = 10 ** np.arange(DIGITS)
PLUS, EQUALS, PAD, EOS = 10, 11, 12, 13
SCORE_SEEDS = (41, 100, 200, 300, 400, 500, 999, 1234, 7777, 31415)  # the final score is on SCORE_PAIRS from each
SCORE_PAIRS = 10_000


class Layout(NamedTuple):
    """Positions of the digits of A, B and the sum in a row of tokens; entry i is that of the digit of 10^i."""

    template: tuple[int, ...]  # the row, with zeros at the positions of digits
    a: tuple[int, ...]
    b: tuple[int, ...]
    sum: tuple[int, ...]
    vocabulary: int

    @property
    def length(self):  # of the model's input, which leaves out the last token: it is a target only
        return len(self.template) - 1

    @property
    def first(self):  # the position that predicts the sum's first digit
        return self.sum[0] - 1


# 0123456789+0123456789=01234567890$: operands most significant digit first, the sum least significant first.
STANDARD = Layout((0,) * 10 + (PLUS,) + (0,) * 10 + (EQUALS,) + (0,) * 11 + (EOS,), a=tuple(range(9, -1, -1)),
                  b=tuple(range(20, 10, -1)), sum=tuple(range(22, 33)), vocabulary=14)  # fmt: skip


def digits(numbers, count=DIGITS):
    """[numbers, count]: the digit of 10^i in column i."""
    return np.asarray(numbers)[:, None] // 10 ** np.arange(count) % 10


def encode(a, b, layout=STANDARD):
    """Rows of tokens, prompt and answer; the digits of the operands are the columns of a and b, [rows, 10] each."""
    rows = np.tile(np.array(layout.template, dtype=np.uint8), (len(a), 1))
    rows[:, layout.a], rows[:, layout.b] = a, b
    rows[:, layout.sum] = digits(a @ POWERS + b @ POWERS, DIGITS + 1)
    return torch.from_numpy(rows)


def encode_pairs(pairs, layout=STANDARD):
    """Rows of tokens of (A, B) pairs."""
    pairs = np.asarray(pairs, dtype=np.int64).reshape(-1, 2)
    if (wrong := ((pairs < 0) | (pairs >= LIMIT)).any(1)).any():
        row = int(wrong.argmax())
        raise ValueError(f"pair {row} is {tuple(pairs[row].tolist())}; both numbers must be 0 to {LIMIT - 1}")
    return encode(digits(pairs[:, 0]), digits(pairs[:, 1]), layout)


def uniform_pairs(seed, count):
    return np.random.default_rng(seed).integers(0, LIMIT, (count, 2))


def carry_pairs(seed, count):
    """Pairs with long carries: a share of their digit pairs, drawn anew for each, sums to nine."""
    rng = np.random.default_rng([seed, 9])
    a = rng.integers(0, 10, (count, DIGITS))
    b = np.where(rng.random((count, DIGITS)) < rng.random((count, 1)), 9 - a, rng.integers(0, 10, (count, DIGITS)))
    return np.stack([a @ POWERS, b @ POWERS], 1)


def key(a, b):
    """A hash of each pair, in 64 bits; a * 10^10 + b would need 67."""
    return a.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + b.astype(np.uint64)


# ---------------------------------------------------------------- model


@dataclass(frozen=True)
class ModelConfig:
    """A rank of 0 means a full matrix, r > 0 the product of two low-rank factors."""

    n_layer: tyro.conf.Suppress[int] = 1
    d_model: int = 7
    n_head: tyro.conf.Suppress[int] = 1
    d_ff: int = 14
    max_seq_len: tyro.conf.Suppress[int] = 33
    vocab_size: tyro.conf.Suppress[int] = 14
    pos_rank: int = 0  # of the 33 learned positions
    qkv_rank: int = 0  # of one fused matrix for queries, keys and values
    attn_out_rank: int = 0
    ffn_rank: int = 0  # of both feed-forward matrices
    use_rmsnorm: bool = False  # instead of LayerNorm
    tie_qkv: Literal["none", "shareA_tieKV"] = "none"  # one low-rank factor for all, keys = values

    def __post_init__(self):
        d = self.d_model
        only = dict(n_layer=1, n_head=1, max_seq_len=STANDARD.length, vocab_size=STANDARD.vocabulary)
        least = only | dict(d_model=1, d_ff=1)
        most = only | dict(pos_rank=d, qkv_rank=d, attn_out_rank=d, ffn_rank=min(d, self.d_ff))
        for name, value in vars(self).items():
            low, high = least.get(name, 0), most.get(name, math.inf)
            if name != "tie_qkv" and not low <= value <= high:
                use = f"{low} only" if low == high else f"{low} to {high}" if high < math.inf else f"{low} or more"
                raise ValueError(f"{name} is {value}; this model is written for {use}")
        if self.tie_qkv != "none" and not (self.tie_qkv == "shareA_tieKV" and self.qkv_rank):
            raise ValueError(f"tie_qkv is {self.tie_qkv!r}; use 'none', or 'shareA_tieKV' and a qkv_rank of 1 or more")

    layout: ClassVar[Layout] = STANDARD

    @property
    def eps(self):
        return 1e-8 if self.use_rmsnorm else 1e-5

    @classmethod
    def from_dict(cls, values):
        """From a checkpoint's config; keys that this version does not know are dropped."""
        known = {f.name for f in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})


class Matrix(nn.Module):
    """A learned matrix, or the product of two factors of the given rank; call it for its value."""

    def __init__(self, rows, columns, rank, full_std, low_std=None):
        super().__init__()
        if rank:
            self.a = nn.Parameter(torch.randn(rows, rank) * (low_std or math.sqrt(2 / (rows + rank))))
            self.b = nn.Parameter(torch.randn(rank, columns) * (low_std or math.sqrt(2 / (rank + columns))))
        else:
            self.weight = nn.Parameter(torch.randn(rows, columns) * full_std)

    def forward(self):
        return self.a @ self.b if hasattr(self, "a") else self.weight


class SharedQKV(nn.Module):
    """Queries and keys have one factor in common, and the values are the keys."""

    def __init__(self, width, rank):
        super().__init__()
        std = math.sqrt(2 / (width + rank))
        self.a = nn.Parameter(torch.randn(width, rank) * std)
        self.q = nn.Parameter(torch.randn(rank, width) * std)
        self.kv = nn.Parameter(torch.randn(rank, width) * std)

    def forward(self):
        q, kv = self.a @ self.q, self.a @ self.kv
        return torch.cat([q, kv, kv], -1)


class TinyDecoderLM(nn.Module):
    """One layer, one head, norms before each part; the output head is the token embedding."""

    def __init__(self, config, std=1 / 50):
        """`std` is that of the embeddings, the positions' matrices and the full matrices."""
        super().__init__()
        self.config, d, eps = config, config.d_model, config.eps
        self.token_emb = nn.Embedding(config.vocab_size, d)
        nn.init.normal_(self.token_emb.weight, std=std)
        self.pos_emb = Matrix(config.max_seq_len, d, config.pos_rank, std, low_std=std)
        tied = config.tie_qkv == "shareA_tieKV"
        self.qkv = SharedQKV(d, config.qkv_rank) if tied else Matrix(d, 3 * d, config.qkv_rank, std)
        self.attn_out = Matrix(d, d, config.attn_out_rank, std)
        self.up, self.down = Matrix(d, config.d_ff, config.ffn_rank, std), Matrix(config.d_ff, d, config.ffn_rank, std)
        norm = nn.RMSNorm if config.use_rmsnorm else nn.LayerNorm
        self.norm1, self.norm2, self.final = norm(d, eps=eps), norm(d, eps=eps), norm(d, eps=eps)
        self.lm_head = nn.Linear(d, config.vocab_size, bias=False)
        self.lm_head.weight = self.token_emb.weight

    def inputs(self, tokens, places):
        """Of tokens at these places: the residual stream, and the attention's queries, keys and values. Queries
        and keys are what evaluate_checkpoints.py measures."""
        x = self.token_emb(tokens) + self.pos_emb()[places]
        q, k, v = (self.norm1(x) @ self.qkv()).chunk(3, -1)
        return x, q / math.sqrt(self.config.d_model), k, v

    def forward(self, tokens, sharpness=1, first=0):
        """Logits [batch, length - first, vocabulary] of tokens [batch, length], of what follows from position `first`
        on; `sharpness` is a factor of attention scores."""
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x, q, k, v = self.inputs(tokens, places)
        seen = places <= places[first:, None]
        attended = F.scaled_dot_product_attention(sharpness * q[:, first:], k, v, attn_mask=seen, scale=1)
        x = x[:, first:] + attended @ self.attn_out()
        x = x + F.gelu(self.norm2(x) @ self.up()) @ self.down()
        return self.lm_head(self.final(x))


def count(model):
    """Trained parameters; tied ones count once."""
    return sum(p.numel() for p in model.parameters())


def answers(model, rows, sharpness=1.0):
    """Logits of the answer's tokens [batch, answer, vocabulary], and these tokens."""
    tokens, first = rows.long(), model.config.layout.first
    return model(tokens[:, :-1], sharpness, first), tokens[:, first + 1 :]


def mean_loss(model, rows, sharpness=1.0):
    predicted, target = answers(model, rows, sharpness)
    return F.cross_entropy(predicted.flatten(0, 1), target.flatten())


@torch.no_grad()
def test(model, rows, at_once=10_000):
    """The mean loss, and how many sums greedy decoding gets right. It does exactly where every digit is the most likely
    one after the right digits before it, so one pass over the whole answer decides."""
    loss = right = 0
    for part in rows.split(at_once):
        predicted, target = answers(model, part)
        loss += float(F.cross_entropy(predicted.flatten(0, 1), target.flatten())) * len(part) / len(rows)
        right += int((predicted.argmax(-1) == target)[:, : len(model.config.layout.sum)].all(1).sum())
    return loss, right


def score_rows(layout):
    """The 100,000 pairs of the final score, by seed."""
    return {seed: encode_pairs(uniform_pairs(seed, SCORE_PAIRS), layout) for seed in SCORE_SEEDS}


def score(model, device="cpu", at_once=10_000):
    """Errors in the pairs of the final score, by seed."""
    rows = score_rows(model.config.layout)
    return {seed: len(part) - test(model, part.to(device), at_once)[1] for seed, part in rows.items()}


# ---------------------------------------------------------------- recipe


@dataclass(frozen=True)
class Settings(outputs.Flags):
    """A training run. The defaults are the log's."""

    model: tyro.conf.OmitArgPrefixes[ModelConfig] = field(default_factory=ModelConfig)
    train_steps: int = 27_000
    lr: float = 0.02  # at the end of the warm-up
    warmup: int = 1_350  # steps
    weight_decay: float = 0.01  # on all parameters
    beta2: float = 0.999
    init_std: float = 0.02  # of embeddings, positions and full matrices
    batch_size: int = 512
    val_size: int = 5_000  # pairs for the metrics and for choosing best.pt
    test_size: int = 10_000
    eval_batch_size: int = 10_000  # pairs at once; bounds memory on a GPU
    eval_interval: int = 500  # steps between two validations


class Recipe:
    """What a run does at each step; steps count from the start of the present weights."""

    begun = given_up = 0  # step at which this start began, and how many were given up before it
    over = False  # whether the run ends before its last step
    best = (0, -1.0)  # after how many steps most sums were right, and their share; the first validation is better
    STATE = ("losses", "rows", "best", "begun", "given_up", "over")  # what a resumed run needs, with the random numbers

    def __init__(self, settings):
        self.s, self.losses, self.rows = settings, [], []
        self.random = np.random.default_rng([settings.seed, 2])
        sizes = [settings.val_size, settings.test_size]
        pairs = uniform_pairs([settings.seed, 1], sum(sizes))
        self.held_out = np.sort(key(*pairs.T))
        self.validation, self.test = encode_pairs(pairs, settings.model.layout).split(sizes)

    def model(self):
        torch.manual_seed(self.s.seed + 10**9 * self.given_up)
        return TinyDecoderLM(self.s.model, self.s.init_std)

    def optimizer(self, model):
        return torch.optim.AdamW(model.parameters(), betas=(0.9, self.s.beta2))

    def longest(self, step):
        """Digits of the longest operands: the curriculum."""
        return 3 if step < 2_000 else 6 if step < 7_000 else DIGITS

    def operands(self, step):
        """Digits of a batch's operands, [batch, 10] each. Both numbers of a pair have the same count of digits."""
        counts = self.random.integers(1, self.longest(step) + 1, (self.s.batch_size, 1))
        return self.random.integers(0, 10, (2, self.s.batch_size, DIGITS)) * (np.arange(DIGITS) < counts)

    def batch(self, step):
        """Rows of tokens. Pairs of the validation and test sets never come."""
        while True:
            a, b = self.operands(step)
            if not self.held(key(a @ POWERS, b @ POWERS)).any():
                return encode(a, b, self.s.model.layout)

    def held(self, keys):
        """Which keys are those of pairs in the validation and test sets."""
        return self.held_out.take(np.searchsorted(self.held_out, keys), mode="clip") == keys

    def learning_rate(self, step):
        """Linear warm-up, then a cosine to a tenth."""
        return cosine_rate(step, self.s.lr, self.s.warmup, self.s.train_steps, floor=0.1)

    def weight_decay(self, step):
        return self.s.weight_decay

    def sharpness(self, step):
        """A factor of the attention scores."""
        return 1.0

    def verdict(self, step, exact):
        """After a validation: whether this start is "stuck" and new weights are wanted, or the run is "over"."""
        return "over" if step + 1 >= self.s.train_steps else ""

    def again(self, step):
        """New weights; this step is their first."""
        self.begun, self.given_up = step, self.given_up + 1
        return self.model()

    def note(self, loss):
        """Told the loss of each step; the next ones may depend on it."""
        self.losses.append(loss)

    def validated(self, step, val_loss, exact, seconds):
        """Told the result of each validation, it adds a row of metrics.csv. -> whether these weights are the best"""
        loss, self.losses, done = sum(self.losses) / len(self.losses), [], self.begun + step + 1
        self.rows.append({
            "step": done, "train_loss": round(loss, 6), "val_loss": round(val_loss, 6), "val_exact": round(exact, 6),
            "lr": round(self.learning_rate(step), 8), "stage": self.stage(step), "seconds": round(seconds, 1),
        })  # fmt: skip
        self.best = max(self.best, (done, exact), key=lambda found: found[1])  # of equal ones the first
        return self.best[0] == done

    def stage(self, step):
        """What the batches are made of, in words: a column of metrics.csv."""
        return f"up to {self.longest(step)} digits"

    def state_dict(self):
        return {"random": self.random.bit_generator.state} | {name: getattr(self, name) for name in self.STATE}

    def load_state_dict(self, state):
        self.random.bit_generator.state = state["random"]
        for name in self.STATE:
            setattr(self, name, state[name])


# ---------------------------------------------------------------- loop


def train(recipe, run):
    """-> the run's summary"""
    if summary := run.ended():
        return summary
    s, model, validation = recipe.s, recipe.model().to(run.device), recipe.validation.to(run.device)
    best, optimizer = copy.deepcopy(model), recipe.optimizer(model)
    parts, diverged = [optimizer, recipe, best], {}
    step = run.resume(model, parts) - 1
    while step + 1 < s.steps and not recipe.over:
        step += 1
        at = step - recipe.begun
        optimizer.param_groups[0].update(lr=recipe.learning_rate(at), weight_decay=recipe.weight_decay(at))
        loss = mean_loss(model, recipe.batch(at).to(run.device), recipe.sharpness(at))
        if not loss.isfinite():
            diverged = {"diverged_at": step + 1}
            break
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        recipe.note(loss.item())
        if run.due(step, s.eval_interval):
            val_loss, right = test(model, validation, s.eval_batch_size)
            exact = right / len(validation)
            if recipe.validated(at, val_loss, exact, run.elapsed()):
                best.load_state_dict(model.state_dict())
                run.save(model, s, "best", *recipe.best)
            run.row = recipe.rows[-1]
            text = "train {train_loss:.4f}  val {val_loss:.4f}  exact {val_exact:.4f}"
            outputs.progress(run, step, text.format(**run.row))
            verdict = recipe.verdict(at, exact)
            recipe.over = verdict == "over"
            if verdict == "stuck":
                run.log(f"# start {recipe.given_up + 1} is stuck; new weights")
                model.load_state_dict(recipe.again(step + 1).state_dict())
                optimizer.state.clear()
        run.end_step(step, model, parts)
    run.default_signals()
    if not diverged:
        run.save(model, s, "last", step + 1, recipe.rows[-1]["val_exact"])
    right = test(best, recipe.test.to(run.device), s.eval_batch_size)[1]
    errors = score(best, run.device, s.eval_batch_size)
    if recipe.rows:
        with disk.writing(run.folder, "plots"):
            plots.run_plots(run.folder, recipe.rows)
    found = outputs.result(recipe, step + 1, right / len(recipe.test), errors)
    return run.end(found | diverged)


def main(argv=None, settings=Settings, recipe=Recipe, file=__file__):
    argv = sys.argv[1:] if argv is None else list(argv)
    options = from_flags(settings, argv, settings(), outputs.wrong_value)
    run = outputs.Run(options, Path(file).stem, argv)
    summary = train(recipe(options), run)
    print(f"{summary['errors_in_100000']:,} errors in 100,000; results in {run.folder}")
    return summary


if __name__ == "__main__":
    main()
