"""Writes demo/index.html: the page of demo/page.html with the weights of a trained network in it.

python -m demo.build                                  with the shipped weights
python -m demo.build --weights runs/exp_suppose/full-seed0       or a run of exp_speedrun or exp_iterate
python -m demo.build --check                          writes nothing; fails where index.html is another
"""

import argparse
import base64
import json
import sys
from pathlib import Path

from plumbing import disk

FOLDER = Path(__file__).resolve().parent
PAGE, BUILT = FOLDER / "page.html", FOLDER / "index.html"
SHIPPED = FOLDER.parent / "weights/suppose.pt"
MARK = "@WEIGHTS@"
PLAIN = {  # the weights that the page's network reads
    *("first", "message", "state", "heard", "seen", "bias", "out"),
    *("norm.weight", "norm.bias", "head.weight", "head.bias"),
}
SUPPOSING = PLAIN | {"supposed"}
NAMES = {"exp_iterate": PLAIN, "exp_suppose": SUPPOSING, "exp_speedrun": SUPPOSING}
UNUSED = {"verdict.weight", "verdict.bias"}  # of exp_suppose: only its training reads them
PHASES = "plain", "explore", "merge"  # the fields of exp_suppose's config that say how many iterations each has


def weights(path):
    """The JSON that the page reads: names and shapes in order, then all numbers, little-endian float32 in base64.

    With weights of exp_suppose also how many iterations its phases have.
    """
    saved = disk.load_checkpoint(path)
    experiment, model = saved.get("experiment"), saved.get("model", {})
    model = {name: tensor for name, tensor in model.items() if "supposed" not in model or name not in UNUSED}
    if set(model) != NAMES.get(experiment):
        raise SystemExit(f"{path} is no checkpoint of {' or '.join(NAMES)}, the networks that demo/page.html can run")
    phases = {}
    if "supposed" in model:
        phases = {name: saved.get("config", {}).get(name) for name in PHASES}
        if not all(isinstance(count, int) and count > 0 for count in phases.values()):
            raise SystemExit(f"{path} cannot be used: its config must give {', '.join(PHASES)} as numbers above 0")
    if not all(tensor.isfinite().all() for tensor in model.values()):
        raise SystemExit(f"{path} cannot be used: its weights are not finite")
    numbers = b"".join(tensor.float().contiguous().numpy().astype("<f4").tobytes() for tensor in model.values())
    shapes = {name: list(tensor.shape) for name, tensor in model.items()}
    phases = {"phases": phases} if phases else {}
    return json.dumps({"shapes": shapes, **phases, "float32": base64.b64encode(numbers).decode()})


def build(path):
    page = PAGE.read_text(encoding="utf-8")
    if page.count(MARK) != 1:
        raise SystemExit(f"{PAGE} must hold {MARK} once, where the weights go")
    return page.replace(MARK, weights(path))


def main(argv=None):
    parser = argparse.ArgumentParser(
        prog="python -m demo.build", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", default=SHIPPED, help="a checkpoint.pt or a run's folder; default: the shipped")
    parser.add_argument("--check", action="store_true", help="compare with index.html instead of writing it")
    arguments = parser.parse_args(argv)
    path = disk.checkpoint_path(arguments.weights)
    page = build(path).encode()
    if not arguments.check:
        disk.replace(BUILT, lambda file: file.write(page))
        print(f"wrote {BUILT} ({len(page) / 1000:.0f} kB)")
    elif not BUILT.exists() or BUILT.read_bytes() != page:
        print(f"{BUILT} is not what {PAGE.name} and {path} give; run python -m demo.build", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
