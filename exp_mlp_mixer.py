"""MLP-Mixer in place of attention.

Parent: exp_extreme_baseline.py
Change: MixerLayer: one MLP across the cells, one across the channels, GELU; Layer, heads and dropout are gone.
Hypothesis: TRM's lead (87.4 %) might come from its mixer layers.
Log: 71.9 %, against 71.4 with attention; at 51+ 63.4 against 65.6, not 71.3. ReLU and dropout went too.

python exp_mlp_mixer.py            the log's run; --preset mini takes minutes on two CPU cores
modal run exp_mlp_mixer.py         the same on a rented GPU
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
    mlp: int = 512  # changed: hidden units of both MLPs
    iterations: int = 16  # passes through the same layers; each pass corrects the one before
    batch: int = 512  # four times the puzzles for twice the time (sudoku_bs512)
    steps: int = 70_000  # the curves are flat by then (exp_extreme_baseline)
    lr: float = 1e-3  # AdamW's, for everything (exp_sam)
    rho: float = 0.05  # the length of SAM's perturbation, the SAM paper's value (exp_sam)
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


class MixerLayer(nn.Module):  # changed: no attention, no dropout
    """An MLP across the 81 cells, then one across the channels, each on the normed state and added to it."""

    def __init__(self, config):
        super().__init__()
        self.norm_cells = nn.LayerNorm(config.width)
        self.cells = nn.Sequential(nn.Linear(81, config.mlp), nn.GELU(), nn.Linear(config.mlp, 81))
        self.norm_channels = nn.LayerNorm(config.width)
        up, down = nn.Linear(config.width, config.mlp), nn.Linear(config.mlp, config.width)
        self.channels = nn.Sequential(up, nn.GELU(), down)

    def forward(self, h):
        h = h + self.cells(self.norm_cells(h).mT).mT
        return h + self.channels(self.norm_channels(h))


class Model(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.encode_puzzle = nn.Linear(10, config.width)  # puzzle and predictions apart (exp_no_x_after_init)
        self.embed_predictions = nn.Linear(9, config.width)  # puzzle and predictions apart (exp_no_x_after_init)
        self.row, self.column, self.box = (nn.Embedding(9, config.width) for _ in range(3))
        self.layers = nn.ModuleList(MixerLayer(config) for _ in range(config.layers))  # changed: drawn independently
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
        with run.precision():  # changed: no dropout to seed
            loss, logits = forward_loss(model, batch, config)
        loss.backward()
        common.sum_gradients(model)
        weights = perturb(model, config.rho)  # the step uses the gradient at the perturbed weights (exp_sam)
        with run.precision():  # changed: second pass, no dropout to seed
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
