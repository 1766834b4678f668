"""Round B: is the estimator's error variance, which averaging over batches removes, or bias, which it does not?

python -m ep_c512.navg_sweep runs/ep_c512/NAME --output results/ep_c512/navg.json

For each number of batches: cosine of the averaged estimate to the averaged BPTT gradient of the same batches; cosine of
two estimates from different batches (self); and what one step of a fixed length along each does to the loss on other
batches.
"""

import torch
from matplotlib.figure import Figure

from ep_c512 import compare
from ep_c512.gradients import ESTIMATORS, Settings

COUNTS = (1, 2, 4, 8, 16)
TEST = 10**6  # number of the first batch that measures the step


@torch.no_grad()
def change_of_loss(loaded, gradient, length, tests):
    """After a step of this length against the gradient: the mean loss, minus that before."""
    model, scale = loaded.model, length / compare.norm(gradient)
    before = [p.clone() for p in model.parameters()]

    def loss():
        frees = [loaded.relaxed(TEST + number) for number in range(tests)]
        return sum(float(model.loss(free.z, free.targets)) for free in frees) / tests

    start = loss()
    for name, p in model.named_parameters():
        p -= scale * gradient[name]
    after = loss()
    for p, old in zip(model.parameters(), before):
        p.copy_(old)
    return after - start


def main(argv=None):
    parser = compare.parser(__doc__)
    parser.add_argument("--estimators", nargs="+", default=["frozen-2", "tracking-2"], choices=list(ESTIMATORS))
    parser.add_argument("--length", type=float, default=0.01, help="of the step, over all parameters")
    parser.add_argument("--tests", type=int, default=4, help="batches that measure it")
    options = parser.parse_args(argv)
    loaded = compare.load(options)
    config = loaded.config
    settings = Settings(config.radius, 3 * config.nudged_steps, config.step_size, held=True, choice="settled",
                        horizon=round(8 / 3 * config.free_steps))  # fmt: skip
    frees = [loaded.relaxed(number) for number in range(2 * max(COUNTS))]
    found = {
        name: [ESTIMATORS[name](free, settings).gradient for free in frees] for name in ("bptt", *options.estimators)
    }
    head = ["estimator", "batches", "cos to BPTT", "self", "self of BPTT", "change of the loss", "by BPTT"]
    rows = []
    for name in options.estimators:
        for count in COUNTS:
            one, other = (compare.mean(found[name][first : first + count]) for first in (0, count))
            exact, exact_other = (compare.mean(found["bptt"][first : first + count]) for first in (0, count))
            rows.append([
                name, count, compare.cosine(one, exact), compare.cosine(one, other),
                compare.cosine(exact, exact_other), change_of_loss(loaded, one, options.length, options.tests),
                change_of_loss(loaded, exact, options.length, options.tests),
            ])  # fmt: skip

    def draw():
        figure = Figure(figsize=(9, 3.5), layout="constrained")
        left, right = figure.subplots(1, 2)
        for name in options.estimators:
            mine = [row for row in rows if row[0] == name]
            left.plot(COUNTS, [row[2] for row in mine], "o-", label=f"{name}: to BPTT")
            left.plot(COUNTS, [row[3] for row in mine], ".--", label=f"{name}: two of its own")
            right.plot(COUNTS, [row[5] for row in mine], "o-", label=name)
        right.plot(COUNTS, [row[6] for row in mine], "k.--", label="BPTT")
        for axes, label in ((left, "cosine"), (right, "change of the loss by one step")):
            axes.set(xscale="log", xlabel="batches averaged", ylabel=label, xticks=COUNTS, xticklabels=COUNTS)
            axes.legend(fontsize=8)
        return figure

    compare.finish(options, loaded, head, rows, draw, length=options.length)


if __name__ == "__main__":
    main()
