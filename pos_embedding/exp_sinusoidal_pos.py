"""Fixed sine and cosine positions.

Parent: sudoku.py
Change: Model.__init__ has one fixed table for row, column and box, Model.positions adds from it.
Hypothesis: Known waves need no learning, as in the first transformer.
Log: 0/1000. Row and column can be swapped in the sum: r1c2 and r2c1 look alike, and both get the same digit if blank.

python pos_embedding/exp_sinusoidal_pos.py            the log's run; --preset mini takes minutes on two CPU cores
modal run pos_embedding/exp_sinusoidal_pos.py         the same on a rented GPU
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
    batch: int = 128  # puzzles a step, over all processes
    steps: int = 100_000  # the log's curves are flat by then
    lr: float = 1e-3  # AdamW's, for biases and norms
    muon_lr: float = 0.02  # Muon's, for everything with two dimensions
    weight_decay: float = 0.01  # AdamW's default
    precision: common.Precision = "fp32"  # fp32: no TF32 either; bf16: autocast on CUDA, a CPU stays at fp32
    data: str = "kaggle"  # or extreme, extreme-test, generated, generated:LOW-HIGH clues, the path of a .csv file
    edges: tuple[float, ...] = common.EASIEST  # edges of the buckets of difficulty: here one, the easiest puzzles
    phases: common.Phases = ((100_000, 0.0, 0.1),)  # until step: lowest rating, below
    train_puzzles: int = 0  # 0 for all there are
    train_per_bucket: int = 100_000  # the first ones in the file; 0 for no limit
    test_per_bucket: int = 1_000  # the next ones: never seen in training
    evaluate_every: int = 1_000  # as logged for the easy puzzles


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
        angle = torch.arange(9)[:, None] / 10_000 ** (torch.arange(0, config.width, 2) / config.width)  # changed: fixed
        waves = torch.stack([angle.sin(), angle.cos()], -1).flatten(1)  # changed: even numbers sine, odd ones cosine
        self.register_buffer("waves", waves, persistent=False)  # changed: not learned
        layer = Layer(config)
        self.layers = nn.ModuleList(copy.deepcopy(layer) for _ in range(config.layers))  # equal weights at the start
        self.head = nn.Linear(config.width, 9)
        self.register_buffer("places", common.places(), persistent=False)

    def positions(self):
        row, column, box = self.places
        return self.waves[row] + self.waves[column] + self.waves[box]  # changed: one table for all three

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


class Muon(torch.optim.Optimizer):
    """Nesterov momentum made more orthogonal: 5 cubic Newton-Schulz steps in fp32, as the log's code had them."""

    def __init__(self, parameters, lr, momentum=0.95):
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                buffer = self.state[p].setdefault("buffer", torch.zeros_like(p))
                buffer.mul_(group["momentum"]).add_(p.grad)
                x = p.grad + group["momentum"] * buffer
                x = x / (x.norm() + 1e-7)
                for _ in range(5):  # x xT x, multiplied from the side that is smaller
                    x = 1.5 * x - 0.5 * (x @ (x.T @ x) if len(x) > x.shape[1] else x @ x.T @ x)
                p.sub_(x, alpha=group["lr"] * max(1, len(p) / p.shape[1]) ** 0.5)


def train(config):
    run = common.Run(config, __file__)
    data = common.load(config, run)
    model = run.compiled(Model(config).to(run.device))
    options = {"lr": config.lr, "betas": (0.9, 0.95), "weight_decay": config.weight_decay, "fused": True}
    matrices, others = ([p for p in model.parameters() if (p.ndim > 1) == wanted] for wanted in (True, False))
    optimizers = [Muon(matrices, lr=config.muon_lr), torch.optim.AdamW(others, **options)]
    for step in range(run.resume(model, optimizers), config.steps):
        batch = common.batch_at(config, data, run, step)
        common.seed_dropout(model, batch.seeds)
        with run.precision():
            loss, logits = forward_loss(model, batch, config)
        loss.backward()
        common.sum_gradients(model)
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
