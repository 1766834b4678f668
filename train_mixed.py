"""Train on all difficulties at once.

Parent: exp_sam.py
Change: 2,997,500 puzzles of all of Kaggle's difficulty buckets instead of 100,000 easy ones; tested on each bucket.
Hypothesis: Skill on easy puzzles does not carry over to hard ones; a mix teaches both.
Log: 1930/2500. An earlier version on 100,000 puzzles (--train-per-bucket 20000 --test-per-bucket 200 --evaluate-every
1000) had 722/1000, 740 at its best step, 77k; its 953 ... 775 from difficulty 1 up were measured on training rows.

python train_mixed.py            the log's run; --preset mini takes minutes on two CPU cores
modal run train_mixed.py         the same on a rented GPU
"""

import copy
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

import common


@dataclass
class Config(common.RunConfig):
    width: int = 128  # size of the state of one cell
    layers: int = 4  # the log found 2 too few to use row, column and box at once
    heads: int = 4  # of width 32
    mlp: int = 512  # hidden units, the usual four times the width
    iterations: int = 16  # passes through the same layers; each pass corrects the one before
    dropout: float = 0.1  # in attention, after it, and twice in the MLP
    batch: int = 512  # four times the puzzles for twice the time (sudoku_bs512)
    steps: int = 100_000  # the log's curves are flat by then
    lr: float = 1e-3  # AdamW's, for everything (exp_sam)
    rho: float = 0.05  # the length of SAM's perturbation, the SAM paper's value (exp_sam)
    weight_decay: float = 0.01  # AdamW's default
    precision: common.Precision = "bf16"  # autocast on CUDA, TF32 elsewhere; a CPU stays at fp32 (sudoku_bs512)
    data: str = "kaggle"  # or extreme, extreme-test, generated, generated:LOW-HIGH clues, the path of a .csv file
    edges: tuple[float, ...] = common.KAGGLE  # changed: all five buckets of difficulty
    phases: common.Phases = ((100_000, 0.0, 10.0),)  # changed: all ratings
    train_puzzles: int = 0  # 0 for all there are
    train_per_bucket: int = 0  # changed: all 2,997,500 but the test's
    test_per_bucket: int = 500  # changed: the last ones of each bucket, 2,500 in all
    evaluate_every: int = 5_000  # changed: as logged


class Layer(nn.Module):
    """Attention, then an MLP, each on the normed state and added to it, as in nn.TransformerEncoderLayer."""

    def __init__(self, config):
        super().__init__()
        self.heads = config.heads
        self.norm_attention = nn.LayerNorm(config.width)
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width, config.width)
        self.norm_mlp = nn.LayerNorm(config.width)
        self.up = nn.Linear(config.width, config.mlp)
        self.down = nn.Linear(config.mlp, config.width)
        self.dropout = common.Dropout(config.dropout)
        nn.init.xavier_uniform_(self.qkv.weight)
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.out.bias)

    def forward(self, h):
        batch, cells, width = h.shape
        qkv = self.qkv(self.norm_attention(h)).view(batch, cells, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        weights = (q * (width // self.heads) ** -0.5 @ k.transpose(-2, -1)).softmax(-1)
        mixed = (self.dropout(weights) @ v).transpose(1, 2).reshape(batch, cells, width)
        h = h + self.dropout(self.out(mixed))
        hidden = self.dropout(F.relu(self.up(self.norm_mlp(h))))
        return h + self.dropout(self.down(hidden))


class Model(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.input = nn.Linear(10 + 9, config.width)
        self.row, self.column, self.box = (nn.Embedding(9, config.width) for _ in range(3))
        layer = Layer(config)
        self.layers = nn.ModuleList(copy.deepcopy(layer) for _ in range(config.layers))  # equal weights at the start
        self.head = nn.Linear(config.width, 9)
        self.register_buffer("places", common.places(), persistent=False)

    def positions(self):
        row, column, box = self.places
        return self.row(row) + self.column(column) + self.box(box)

    def start(self, puzzle):
        """The state before the first iteration."""
        x = F.one_hot(puzzle, 10).float()
        return x, x.new_zeros(*puzzle.shape, 9)

    def iterate(self, state):
        """One pass through the layers: the logits [batch, 81, 9], the next state."""
        x, predictions = state
        h = self.input(torch.cat([x, predictions], -1)) + self.positions()
        for layer in self.layers:
            h = layer(h)
        logits = self.head(h)
        return logits, (x, logits.float().softmax(-1))

    def forward(self, puzzle, iterations):
        """Yield the logits of each iteration."""
        state = self.start(puzzle)
        for _ in range(iterations):
            logits, state = self.iterate(state)
            yield logits


def blank_loss(logits, batch):
    """Cross-entropy on blank cells, scaled so that the processes' shares add up to the mean."""
    entropy = F.cross_entropy(logits.flatten(0, 1).float(), batch.target.flatten(), reduction="sum")
    return entropy / batch.blanks


def forward_loss(model, batch, config):
    """The loss, averaged over the iterations, and the last logits."""
    loss = 0.0
    for logits in model(batch.puzzle, config.iterations):
        loss = loss + blank_loss(logits, batch) / config.iterations
    return loss, logits


@torch.no_grad()
def perturb(model, rho):  # add rho * g / |g| to the weights (exp_sam)
    parameters = [p for p in model.parameters() if p.grad is not None]
    norm = torch.stack([p.grad.norm() for p in parameters]).norm()
    weights = [p.clone() for p in model.parameters()]
    for p in parameters:
        p += p.grad * (rho / (norm + 1e-12))
    model.zero_grad()
    return weights


@torch.no_grad()
def restore(model, weights):  # the weights as they were, bit for bit; the gradient stays (exp_sam)
    for p, weight in zip(model.parameters(), weights):
        p.copy_(weight)


def train(config):
    run = common.Run(config, __file__)
    data = common.load(config, run)
    model = run.compiled(Model(config).to(run.device))
    options = {"lr": config.lr, "betas": (0.9, 0.95), "weight_decay": config.weight_decay, "fused": True}
    optimizers = [torch.optim.AdamW(model.parameters(), **options)]  # no Muon (exp_sam)
    for step in range(run.resume(model, optimizers), config.steps):
        batch = common.batch_at(config, data, run, step)
        common.seed_dropout(model, batch.seeds)
        with run.precision():
            loss, logits = forward_loss(model, batch, config)
        loss.backward()
        common.sum_gradients(model)
        weights = perturb(model, config.rho)  # the step uses the gradient at the perturbed weights (exp_sam)
        common.seed_dropout(model, batch.seeds + 1)  # masks of its own (exp_sam)
        with run.precision():  # second pass (exp_sam)
            forward_loss(model, batch, config)[0].backward()
        common.sum_gradients(model)  # second pass (exp_sam)
        restore(model, weights)  # second pass (exp_sam)
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
