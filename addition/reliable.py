"""Our recipe for the log's models: what differs from train.py, and why. EXPERIMENTS.md has the evidence.

python -m addition.reliable --pos-rank 3 --qkv-rank 3 --attn-out-rank 2 --ffn-rank 3 --use-rmsnorm \\
  --tie-qkv shareA_tieKV --seed 0
"""

from dataclasses import dataclass

import numpy as np

from addition import train
from addition.train import DIGITS


@dataclass(frozen=True)
class Settings(train.Settings):
    train_steps: int = 24_000  # of a start
    batch_size: int = 256
    lr: float = 0.08  # at the end of the warm-up
    warmup: int = 200  # steps
    init_std: float = 0.38  # of embeddings, positions and full matrices
    weight_decay: float = 0.02  # lets wrong attention shrink; for all steps it would keep predictions uncertain
    decay_until: int = 10_000  # step at which the weight decay has fallen to 0; 0: it stays
    first_stage: int = 1_000  # steps of numbers made of zeros and nines: all carries, but three sums of two digits
    mastery: float = 0.2  # that stage also lasts until the loss is below this; 0: only its steps count
    rehearse: float = 0.3  # share of the first stage's numbers in the later batches
    carry: float = 0.5  # share of the batch that has long carries
    soften: float = 0.3  # factor of the attention scores at first: attention that saturates early learns no carries
    soften_until: int = 4_000  # step at which it has risen to 1
    budget: int = 107_500  # steps of all starts: one that is stuck is given up for new weights; 0: there is one start
    leave: int = 3_000  # it is where the first stage goes on at this step,
    judge: int = 16_000  # where fewer sums than `promising` are right at this step or later,
    promising: float = 0.3  # or where they are below 99 % at its end

    @property
    def steps(self):
        return max(self.budget, self.train_steps)


class Recipe(train.Recipe):
    """A first stage, long carries, softened attention, weight decay that ends, and new weights for what is stuck."""

    STATE = (*train.Recipe.STATE, "first", "smooth")

    def __init__(self, settings):
        super().__init__(settings)
        self.first, self.smooth = settings.first_stage > 0, None

    def verdict(self, step, exact):
        s, now = self.s, step + 1
        stuck = self.first if now < s.judge else exact < (s.promising if now < s.train_steps else 0.99)
        if stuck and now >= s.leave and self.begun + now + s.train_steps <= s.steps:
            return "stuck"
        return super().verdict(step, exact)

    def again(self, step):
        self.first, self.smooth = self.s.first_stage > 0, None
        return super().again(step)

    def note(self, loss):
        super().note(loss)
        self.smooth = loss if self.smooth is None else 0.98 * self.smooth + 0.02 * loss

    def operands(self, step):
        s, size, random = self.s, self.s.batch_size, self.random
        if self.first and step >= s.first_stage and not (s.mastery and self.smooth > s.mastery):
            self.first = False
        a, b = random.integers(0, 10, (2, size, DIGITS))
        simple = random.random(size) < (1 if self.first else s.rehearse)
        a[simple], b[simple] = 9 * (a[simple] >= 5), 9 * (b[simple] >= 5)
        rich = random.random((size, 1)) * (random.random((size, 1)) < s.carry)
        b = np.where(random.random((size, DIGITS)) < rich, 9 - a, b)
        used = np.arange(DIGITS) < self.counts(step)
        return a * used, b * used

    def counts(self, step):
        """How many digits the operands of each row have."""
        return self.random.integers(1, DIGITS + 1, (self.s.batch_size, 1))

    def weight_decay(self, step):
        end = self.s.decay_until
        return self.s.weight_decay * max(0.0, 1 - step / end) if end else self.s.weight_decay

    def sharpness(self, step):
        return min(1.0, self.s.soften + (1 - self.s.soften) * step / max(1, self.s.soften_until))

    def stage(self, step):
        return "zeros and nines" if self.first else "all digits"


if __name__ == "__main__":
    train.main(settings=Settings, recipe=Recipe, file=__file__)
