"""Takes parameters out of a trained smallest model, while the others go on learning.

python -m addition.shrink --start results/runs/smallest-19p/checkpoints/seed1002.pt --gate 00/00/__ \\
  --joined 0__/0_0 --up 11/0_/__

The flags are those of smallest.py: the model that remains. Each entry that its patterns leave out, fix or share is
moved to its new value in the first steps, by the same amount a step. There are other models of the same function, such
as that with the hidden units in another order: of these copies, the one that changes least is taken. Steps are in
proportion to an entry's size at first: entries of a trained model differ by a factor of a hundred.
"""

import itertools
from dataclasses import dataclass

import torch

from addition import smallest, train
from addition.evaluate_checkpoints import load
from addition.smallest import Pattern, SmallestAdder


@dataclass(frozen=True)
class Settings(smallest.Settings):
    start: str = ""  # checkpoint of a trained smallest model
    ramp: int = 2_000  # steps in which the entries reach their new values
    lr: float = 0.02  # at the end of the warm-up, in shares of an entry
    warmup: int = 100  # steps
    carry: float = 0.5  # share of the batch that has long carries
    soften: float = 1.0  # factor of the attention scores at first
    full: int = 1  # from this step on all numbers have ten digits; 0: never


class Relative(torch.optim.AdamW):
    """AdamW with steps in proportion to each entry's first size."""

    def __init__(self, parameters, **options):
        super().__init__(parameters, **options)
        self.sizes = [p.detach().abs().clamp(min=0.05) for p in self.param_groups[0]["params"]]

    def step(self):
        before = [p.detach().clone() for p in self.param_groups[0]["params"]]
        super().step()
        for p, old, size in zip(self.param_groups[0]["params"], before, self.sizes, strict=True):
            p.data.sub_(old).mul_(size).add_(old)


def copies(model, radius):
    """The same function on an arc of this radius: matrices by name, with the hidden units in each order, each scaled so
    that one of its entries in `up` is 1 or -1, or as it is, and with the third coordinate mirrored or not."""
    joined, up, gate, down, final = (model.matrix(name).detach() for name in Pattern.NAMES)
    joined, down = (part * (radius / model.config.radius) for part in (joined, down))
    scales = [[1.0, *(1 / unit[unit != 0]), *(-1 / unit[unit != 0])] for unit in up.T]
    for order in map(list, itertools.permutations(range(up.shape[1]))):
        for side, *scale in itertools.product((1, -1), *(scales[unit] for unit in order)):
            mirror, scale = torch.ones(len(up)), torch.tensor(scale)
            mirror[2:] = side
            yield dict(
                joined=joined * mirror,
                up=up[:, order] * scale * mirror[:, None],
                gate=gate[:, order] * mirror[:, None],
                down=down[order] / scale[:, None] * mirror,
                final=final,
            )


def projected(config, matrices):
    """The learned numbers of these patterns that come closest to these matrices, how far they are, and the change."""
    learned, change, distance = {}, {}, 0.0
    for name, matrix in matrices.items():
        pattern = Pattern(getattr(config, name))
        added = pattern.added()
        learned[name] = (added * (matrix - pattern.fixed)).sum((1, 2)) / added.square().sum((1, 2))
        change[name] = matrix - pattern(learned[name])
        distance += float((change[name] / (1 + matrix.abs())).abs().sum())
    return learned, distance, change


class Shrinking(SmallestAdder):
    """Between a trained model and what remains of it: `left` is the share of the change that is still to come."""

    def __init__(self, config, trained):
        found = [projected(config, matrices) for matrices in copies(trained, config.radius)]
        learned, _, change = min(found, key=lambda item: item[1])
        learned = {name: p.detach() for name, p in (*trained.named_parameters(), *trained.named_buffers())} | learned
        super().__init__(config, {name: learned[name] for name in config.shapes()})
        self.change = change
        self.moved = {name: learned[name] for name in ("span", "scale") if getattr(config, name)}
        self.set(0.0)

    def set(self, left):
        self.left = left
        for name, value in self.moved.items():
            setattr(self, name, left * value + (1 - left) * getattr(self.config, name))

    def matrix(self, name):
        return super().matrix(name) + self.left * self.change[name]


class Recipe(smallest.Recipe):
    def model(self):
        trained = load(self.s.start) if self.s.start else None
        if not isinstance(trained, SmallestAdder):
            raise SystemExit(f"--start {self.s.start or '(none)'}: expected the checkpoint of a model of smallest.py")
        self.shrinking = Shrinking(self.s.model, trained)
        return self.shrinking

    def optimizer(self, model):
        return Relative(model.parameters(), betas=(0.9, self.s.beta2))

    def sharpness(self, step):
        self.shrinking.set(max(0.0, 1 - step / max(1, self.s.ramp)))
        return super().sharpness(step)

    def note(self, loss):
        super().note(loss)
        self.shrinking.set(0.0)  # what is validated and kept is what remains


if __name__ == "__main__":
    train.main(settings=Settings, recipe=Recipe, file=__file__)
