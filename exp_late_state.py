"""Late in training, steps begin from late states too.

Parent: exp_cosine_no_sam.py
Change: in the second half of the training every second step goes on from the state after 16, 32 or 48 iterations
    without gradient (forward_loss, late).
Hypothesis: A network that is only trained on its first 16 iterations need not be right later, where hard puzzles are
    solved.
Log: not in the log.

python exp_late_state.py            as long as exp_cosine_no_sam.py; --preset mini takes minutes on two CPU cores
modal run exp_late_state.py         the same on a rented GPU
"""

import copy
import math  # the last bucket has no upper edge (exp_extreme_curriculum)
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
    late: int = 3  # changed: every second step begins after up to so many times its iterations
    late_from: float = 0.5  # changed: share of the steps before the first of these; at once it learns nothing
    dropout: float = 0.1  # in attention, after it, and twice in the MLP
    batch: int = 4096  # eight times the puzzles a step (exp_scale_batch_4k)
    steps: int = 70_000  # the curves are flat by then (exp_extreme_baseline)
    lr: float = 1.5e-3  # lr scaled up for batch 4096 (exp_scale_batch_4k)
    warmup: int = 2_000  # steps to the full rate, as in nano-trm (exp_warmup)
    weight_decay: float = 0.01  # AdamW's default
    precision: common.Precision = "bf16"  # autocast on CUDA, TF32 elsewhere; a CPU stays at fp32 (sudoku_bs512)
    data: str = "extreme"  # its train and test splits; or kaggle, generated, a .csv file (exp_extreme_baseline)
    edges: tuple[float, ...] = common.EXTREME  # 0, 1-2, 3-10, 11-50, 51+ guesses (exp_extreme_curriculum)
    phases: common.Phases = (  # 14k steps each, then all from 42k (exp_extreme_baseline)
        (14_000, 51.0, math.inf),
        (28_000, 11.0, math.inf),
        (42_000, 1.0, math.inf),
        (70_000, 0.0, math.inf),
    )
    train_puzzles: int = 2_700_000  # the first rows of the file (exp_extreme_baseline)
    train_per_bucket: int = 0  # no limit (exp_extreme_curriculum)
    test_per_bucket: int = 5_000  # up to 25,000 in all (exp_extreme_baseline)
    evaluate_every: int = 5_000  # as logged (train_mixed)


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
        self.encode_puzzle = nn.Linear(10, config.width)  # puzzle and predictions apart (exp_no_x_after_init)
        self.embed_predictions = nn.Linear(9, config.width)  # puzzle and predictions apart (exp_no_x_after_init)
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
        return self.encode_puzzle(x), x.new_zeros(*puzzle.shape, 9)  # h0 = the puzzle (exp_no_x_after_init)

    def iterate(self, state):
        """One pass through the layers: the logits [batch, 81, 9], the next state."""
        h, predictions = state  # without x (exp_no_x_after_init)
        h = h + self.embed_predictions(predictions) + self.positions()  # without x (exp_no_x_after_init)
        for layer in self.layers:
            h = layer(h)
        logits = self.head(h)
        return logits, (h, logits.float().softmax(-1))  # without x (exp_no_x_after_init)

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


def forward_loss(model, batch, late, config):  # changed: from a late state
    """The loss, averaged over the iterations, and the last logits."""
    loss, state = 0.0, model.start(batch.puzzle)  # changed: goes on from there
    with torch.no_grad():  # changed: what earlier iterations did is taken as it is
        for _ in range(late):
            _, state = model.iterate(state)
    for _ in range(config.iterations):  # changed: not from the start
        logits, state = model.iterate(state)  # changed: not from the start
        loss = loss + blank_loss(logits, batch) / config.iterations
    return loss, logits


def train(config):
    run = common.Run(config, __file__)
    data = common.load(config, run)
    model = run.compiled(Model(config).to(run.device))
    options = {"lr": config.lr, "betas": (0.9, 0.95), "weight_decay": config.weight_decay, "fused": True}
    optimizers = [torch.optim.AdamW(model.parameters(), **options)]  # no Muon (exp_sam)
    for step in range(run.resume(model, optimizers), config.steps):
        rate = common.cosine_rate(step, config.lr, config.warmup, config.steps)  # falls to 1 % (exp_cosine)
        for group in optimizers[0].param_groups:  # set the rate of this step (exp_warmup)
            group["lr"] = rate
        batch = common.batch_at(config, data, run, step)
        common.seed_dropout(model, batch.seeds)
        with run.precision():
            late = step % 2 * (step // 2 % config.late + 1)  # changed: 0, 1, 0, 2, 0, 3, 0, 1, ...
            late *= config.iterations * (step >= config.late_from * config.steps)  # changed: none at first
            loss, logits = forward_loss(model, batch, late, config)  # changed: from there
        loss.backward()
        common.sum_gradients(model)  # the only pass, no SAM (exp_cosine_no_sam)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        run.report(step, loss, logits, batch, rate)  # rate of this step (exp_warmup)
        run.evaluate(step, model, data)
        run.end_step(step, model, optimizers)
    return run.finish(model, data)


def main(argv=None):
    return train(common.parse(Config, argv))


app = common.modal_app(__file__)
if __name__ == "__main__":
    main()
