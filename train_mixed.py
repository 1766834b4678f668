"""Train on all difficulties at once.

Parent: exp_sam.py
Change: 20,000 puzzles of each Kaggle difficulty bucket instead of 100,000 easy ones; tested on all.
Hypothesis: Skill on easy puzzles does not carry over to hard ones; a mix teaches both.
Log: 1930/2500 on the 2.7M set (--train-per-bucket 0 --test-per-bucket 500);
960, 953, 904, 851, 815, 775 of 1000 by difficulty on 100,000 puzzles.

python train_mixed.py            the log's run; --preset mini takes minutes on two CPU cores
modal run train_mixed.py         the same on a rented GPU
"""

from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

import common
from data import sources
from plumbing.dropout import advance, dropout


@dataclass
class Config(common.RunConfig):
    width: int = 128  # numbers that describe one cell
    layers: int = 4  # the log finds two too few to see row, column and box at once
    heads: int = 4  # 32 numbers each
    mlp: int = 512  # hidden units, the usual four times the width
    iterations: int = 16  # passes through the same layers, each corrects the one before
    dropout: float = 0.1  # in attention, after it, and twice in the MLP
    batch: int = 512  # changed: four times the puzzles for twice the time (sudoku_bs512)
    steps: int = 100_000  # the log's curves are flat by then
    lr: float = 1e-3  # changed: AdamW's, for everything (exp_sam)
    rho: float = 0.05  # changed: how far SAM climbs, the SAM paper's value (exp_sam)
    weight_decay: float = 0.01  # AdamW's default
    precision: str = "bf16"  # changed: autocast on CUDA; a CPU stays at fp32 (sudoku_bs512)
    data: str = "kaggle"  # or extreme, generated, the path of a .csv file
    edges: tuple[float, ...] = sources.KAGGLE  # changed: all five buckets of difficulty (train_mixed)
    phases: common.Phases = ((100_000, 0.0, 10.0),)  # changed: all ratings (train_mixed)
    train_puzzles: int = 0  # changed: no limit in all (train_mixed)
    train_per_bucket: int = 20_000  # changed: as many of each bucket, 100,000 in all (train_mixed)
    test_per_bucket: int = 200  # changed: 1,000 in all (train_mixed)


class Layer(nn.Module):
    """Attention, then an MLP, each on the normed state and added to it, as in nn.TransformerEncoderLayer."""

    def __init__(self, config):
        super().__init__()
        self.heads, self.rate = config.heads, config.dropout
        self.norm_attention = nn.LayerNorm(config.width)
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width, config.width)
        self.norm_mlp = nn.LayerNorm(config.width)
        self.up = nn.Linear(config.width, config.mlp)
        self.down = nn.Linear(config.mlp, config.width)
        nn.init.xavier_uniform_(self.qkv.weight)
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.out.bias)

    def forward(self, h, keys):
        batch, cells, width = h.shape
        qkv = self.qkv(self.norm_attention(h)).view(batch, cells, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) * (width // self.heads) ** -0.5).softmax(-1)
        mixed = (dropout(weights, self.rate, keys, 0) @ v).transpose(1, 2).reshape(batch, cells, width)
        h = h + dropout(self.out(mixed), self.rate, keys, 1)
        hidden = dropout(F.relu(self.up(self.norm_mlp(h))), self.rate, keys, 2)
        return h + dropout(self.down(hidden), self.rate, keys, 3)


class Model(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.input = nn.Linear(10 + 9, config.width)
        self.row, self.column, self.box = (nn.Embedding(9, config.width) for _ in range(3))
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.head = nn.Linear(config.width, 9)
        cell = torch.arange(81)
        places = torch.stack([cell // 9, cell % 9, cell // 27 * 3 + cell % 9 // 3])
        self.register_buffer("places", places, persistent=False)

    def positions(self):
        row, column, box = self.places
        return self.row(row) + self.column(column) + self.box(box)

    def iterate(self, x, predictions, position, keys):
        h = self.input(torch.cat([x, predictions], -1)) + position
        for layer in self.layers:
            h, keys = layer(h, keys), advance(keys)
        return self.head(h), keys

    def forward(self, puzzle, iterations, keys=None):
        """Yield the logits [batch, 81, 9] of each iteration; keys make dropout, without them there is none."""
        x = F.one_hot(puzzle, 10).float()
        predictions, position = x.new_zeros(*puzzle.shape, 9), self.positions()
        for _ in range(iterations):
            logits, keys = self.iterate(x, predictions, position, keys)
            predictions = logits.float().softmax(-1)
            yield logits


def blank_loss(logits, batch):
    """Cross-entropy on blank cells, scaled so that the processes' shares add up to the mean."""
    entropy = F.cross_entropy(logits.flatten(0, 1).float(), batch.target.flatten(), reduction="sum")
    return entropy / batch.blanks


def forward_loss(model, batch, keys, config):
    """The loss, averaged over the iterations, and the last logits."""
    loss = 0.0
    for logits in model(batch.puzzle, config.iterations, keys):
        loss = loss + blank_loss(logits, batch) / config.iterations
    return loss, logits


@torch.no_grad()
def climb(model, rho):  # changed: to the worst place within rho, as far as the gradient knows (exp_sam)
    norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
    shifts = [p.grad * (rho / (norm + 1e-12)) for p in model.parameters()]
    for p, shift in zip(model.parameters(), shifts):
        p += shift
    model.zero_grad()
    return shifts


@torch.no_grad()
def descend(model, shifts):  # changed: back to where climb began; the gradient stays (exp_sam)
    for p, shift in zip(model.parameters(), shifts):
        p -= shift


def train(config):
    run = common.start(config, __file__)
    data = sources.load(config)
    model = run.compiled(Model(config).to(run.device))
    options = {"lr": config.lr, "betas": (0.9, 0.95), "weight_decay": config.weight_decay, "fused": True}
    optimizers = [torch.optim.AdamW(model.parameters(), **options)]  # changed: no Muon (exp_sam)
    for step in range(run.resume(model, optimizers), config.steps):
        batch = common.batch_at(config, data, run, step)
        with run.precision():
            loss, logits = forward_loss(model, batch, batch.keys, config)
        loss.backward()
        common.sum_gradients(model)
        shifts = climb(model, config.rho)  # changed: the step's gradient is the one up there (exp_sam)
        with run.precision():
            forward_loss(model, batch, advance(batch.keys), config)[0].backward()
        common.sum_gradients(model)
        descend(model, shifts)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        run.report(step, loss, logits, batch, config.lr)
        run.evaluate(step, model, data)
        run.end_step(step, model, optimizers)
    return run.finish(model, data)


def main(argv=None):
    return train(common.parse(Config, argv))


app = common.modal_app(__file__)
if __name__ == "__main__":
    main()
