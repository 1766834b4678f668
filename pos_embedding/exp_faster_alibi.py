"""ALiBi: attention fades with distance.

Parent: exp_cosine_50k.py
Change: Layer.forward takes slope times distance off the attention logits (fading); positions() is gone.
Hypothesis: A fixed preference for near cells, with a slope for each head, needs no learned positions at all.
Log: 18.7 %, against 82.8: near along the board is not what rows, columns and boxes are. Its layers also start
independently, without Xavier. 796,937 parameters.

python pos_embedding/exp_faster_alibi.py            the log's run; --preset mini takes minutes on two CPU cores
modal run pos_embedding/exp_faster_alibi.py         the same on a rented GPU
"""

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
    dropout: float = 0.1  # in attention, after it, and twice in the MLP
    batch: int = 4096  # eight times the puzzles a step (exp_scale_batch_4k)
    steps: int = 50_000  # 30 % fewer (exp_cosine_50k)
    lr: float = 1.5e-3  # lr scaled up for batch 4096 (exp_scale_batch_4k)
    warmup: int = 1_400  # the same share of the run (exp_cosine_50k)
    weight_decay: float = 0.01  # AdamW's default
    precision: common.Precision = "bf16"  # autocast on CUDA, TF32 elsewhere; a CPU stays at fp32 (sudoku_bs512)
    data: str = "extreme"  # its train and test splits; or kaggle, generated, a .csv file (exp_extreme_baseline)
    edges: tuple[float, ...] = common.EXTREME  # 0, 1-2, 3-10, 11-50, 51+ guesses (exp_extreme_curriculum)
    phases: common.Phases = (  # 10k steps each, then all from 30k (exp_cosine_50k)
        (10_000, 51.0, math.inf),
        (20_000, 11.0, math.inf),
        (30_000, 1.0, math.inf),
        (50_000, 0.0, math.inf),
    )
    train_puzzles: int = 2_700_000  # the first rows of the file (exp_extreme_baseline)
    train_per_bucket: int = 0  # no limit (exp_extreme_curriculum)
    test_per_bucket: int = 5_000  # up to 25,000 in all (exp_extreme_baseline)
    evaluate_every: int = 5_000  # as logged (train_mixed)


def fading(heads):  # changed: [heads, 81, 81], -slope * |i - j| with the slopes 1/4, 1/16, 1/64, 1/256 for four heads
    cell, slopes = torch.arange(81), 2.0 ** (-8 * torch.arange(1, heads + 1) / heads)
    return -slopes[:, None, None] * (cell[:, None] - cell).abs()


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
        self.register_buffer("bias", fading(config.heads), persistent=False)  # changed: and PyTorch's init stays

    def forward(self, h):
        batch, cells, width = h.shape
        qkv = self.qkv(self.norm_attention(h)).view(batch, cells, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        weights = (q * (width // self.heads) ** -0.5 @ k.transpose(-2, -1) + self.bias).softmax(-1)  # changed: biased
        mixed = (self.dropout(weights) @ v).transpose(1, 2).reshape(batch, cells, width)
        h = h + self.dropout(self.out(mixed))
        hidden = self.dropout(F.relu(self.up(self.norm_mlp(h))))
        return h + self.dropout(self.down(hidden))


class Model(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.encode_puzzle = nn.Linear(10, config.width)  # puzzle and predictions apart (exp_no_x_after_init)
        self.embed_predictions = nn.Linear(9, config.width)  # puzzle and predictions apart (exp_no_x_after_init)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))  # changed: drawn independently
        self.head = nn.Linear(config.width, 9)  # changed: no table of places

    def start(self, puzzle):
        """The state before the first iteration."""
        x = F.one_hot(puzzle, 10).float()
        return self.encode_puzzle(x), x.new_zeros(*puzzle.shape, 9)  # h0 = the puzzle (exp_no_x_after_init)

    def iterate(self, state):
        """One pass through the layers: the logits [batch, 81, 9], the next state."""
        h, predictions = state  # without x (exp_no_x_after_init)
        h = h + self.embed_predictions(predictions)  # changed: no positions in the state
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


def forward_loss(model, batch, config):
    """The loss, averaged over the iterations, and the last logits."""
    loss = 0.0
    for logits in model(batch.puzzle, config.iterations):
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
            loss, logits = forward_loss(model, batch, config)
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
