"""Is a run's gradient still right? Its own estimator against BPTT and the adjoint, at its last checkpoint.

python -m ep_c512.cos_now runs/ep_c512/NAME             also while the run goes on
"""

from matplotlib.figure import Figure

from ep_c512 import compare
from ep_c512.gradients import ESTIMATORS, Settings


def main(argv=None):
    parser = compare.parser(__doc__)
    parser.add_argument("--batches", type=int, default=2)
    options = parser.parse_args(argv)
    loaded = compare.load(options)
    config = loaded.config
    long = Settings(step_size=config.step_size, horizon=round(8 / 3 * config.free_steps), steps=2_000, tolerance=1e-6)
    head = ["batch", "loss", "residual", "cos to BPTT", "k", "cos to the adjoint", "adjoint to BPTT", "change"]
    rows = []
    for number in range(options.batches):
        free = loaded.relaxed(number)
        own = ESTIMATORS[config.estimator](free, config.settings())
        exact, adjoint = (ESTIMATORS[name](free, long).gradient for name in ("bptt", "adjoint"))
        rows.append([
            number, float(own.loss), free.residual, compare.cosine(own.gradient, exact),
            compare.norm(own.gradient) / compare.norm(exact), compare.cosine(own.gradient, adjoint),
            compare.cosine(adjoint, exact), own.change,
        ])  # fmt: skip

    def draw():
        figure = Figure(figsize=(5, 3), layout="constrained")
        axes = figure.subplots()
        axes.bar([str(row[0]) for row in rows], [row[3] for row in rows])
        axes.set(xlabel="batch", ylabel="cosine to BPTT")
        return figure

    compare.finish(options, loaded, head, rows, draw)


if __name__ == "__main__":
    main()
