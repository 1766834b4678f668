"""TRM's network: two states, cycles within cycles, of which only the last learns.

Parent: exp_scale_batch_4k.py
Change: Model holds two states that one module of Block and SwiGLU updates in nested cycles, without positions; Layer,
    heads, dropout, rho, perturb and restore are gone; train() takes plain AdamW steps, and clip bounds the gradient.
Hypothesis: nano-trm's 87.4 % may come from its network.
Log: 60.3 %, against 76.3 with attention. Width, optimiser, rate, weight decay and dropout changed along with it.

python exp_trm_nested.py            the log's run; --preset mini takes minutes on two CPU cores
modal run exp_trm_nested.py         the same on a rented GPU
"""

import math  # the last bucket has no upper edge (exp_extreme_curriculum)
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

import common


@dataclass
class Config(common.RunConfig):
    width: int = 512  # changed: as in TRM
    layers: int = 2  # changed: blocks in the one module
    mlp: int = 1408  # changed: 2/3 of four times the width, rounded up to a multiple of 64
    iterations: int = 1  # changed: passes, each of all cycles
    cycles: int = 3  # changed: updates of the high state in a pass, the last one with gradient
    low_cycles: int = 6  # changed: updates of the low state before each of the high one
    batch: int = 4096  # eight times the puzzles a step (exp_scale_batch_4k)
    steps: int = 70_000  # the curves are flat by then (exp_extreme_baseline)
    lr: float = 1e-4  # changed: TRM's
    clip: float = 1.0  # changed: longest gradient
    weight_decay: float = 1.0  # changed: TRM's, a hundred times AdamW's default
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


class SwiGLU(nn.Module):  # changed: half of the hidden units gate the others, no biases
    def __init__(self, size, hidden):
        super().__init__()
        self.up = nn.Linear(size, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, size, bias=False)

    def forward(self, x):
        gate, value = self.up(x).chunk(2, -1)
        return self.down(F.silu(gate) * value)


class Block(nn.Module):  # changed: in place of Layer
    """Across the cells, then across the channels, each added to the state, which is normed after that."""

    def __init__(self, config):
        super().__init__()
        self.cells = SwiGLU(81, 256)
        self.channels = SwiGLU(config.width, config.mlp)

    def forward(self, h):
        h = F.rms_norm(h + self.cells(h.mT).mT, h.shape[-1:], eps=1e-5)
        return F.rms_norm(h + self.channels(h), h.shape[-1:], eps=1e-5)


class Model(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.cycles, self.low_cycles = config.cycles, config.low_cycles  # changed: needed in iterate
        self.encode_puzzle = nn.Embedding(10, config.width)  # changed: no predictions, no positions
        self.first = nn.Parameter(0.02 * torch.randn(2, config.width))  # changed: first states, never trained
        self.layers = nn.ModuleList(Block(config) for _ in range(config.layers))  # changed: drawn independently
        self.head = nn.Linear(config.width, 9, bias=False)  # changed: no bias

    def start(self, puzzle):
        """The state before the first iteration."""
        x = self.encode_puzzle(puzzle) * self.head.in_features**0.5  # changed: added all along
        return x, *(first.expand_as(x) for first in self.first)  # changed: two states, alike in all cells

    def iterate(self, state):
        """One pass through the layers: the logits [batch, 81, 9], the next state."""
        x, high, low = state  # changed: two states
        for cycle in range(self.cycles):  # changed: only the last cycle keeps what the backward pass needs
            with torch.set_grad_enabled(torch.is_grad_enabled() and cycle == self.cycles - 1):
                for _ in range(self.low_cycles):
                    low = self.update(low + high + x)
                high = self.update(high + low)
        return self.head(high), (x, high, low)  # changed: two states

    def update(self, h):  # changed: one module for both states
        for layer in self.layers:
            h = layer(h)
        return h

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
        batch = common.batch_at(config, data, run, step)
        with run.precision():  # changed: no dropout to seed
            loss, logits = forward_loss(model, batch, config)
        loss.backward()
        common.sum_gradients(model)
        nn.utils.clip_grad_norm_(model.parameters(), config.clip)  # changed: no longer than 1
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
