"""Exact match of checkpoints on the 100,000 pairs of the final score: ten seeds, 10,000 pairs each.

python -m addition.evaluate_checkpoints results/runs/repro_456_s43/checkpoints/best.pt --output results/eval.json
"""

import argparse
from pathlib import Path

import torch

from addition import model
from addition.data import SCORE_SEEDS
from addition.tiny import TinyConfig
from addition.training import pick_engine, score
from plumbing import disk
from plumbing.run import pick_device

ARCHITECTURES = {"ModelConfig": model.ModelConfig, "TinyConfig": TinyConfig}
PAIRS = 10_000 * len(SCORE_SEEDS)


def load(path):
    """The config and the named tensors, frozen ones too, of a checkpoint made by addition.train or addition.tiny."""
    saved = disk.load_checkpoint(path)
    try:
        architecture, config, named = (saved[key] for key in ("architecture", "model_config", "model_state"))
        if architecture not in ARCHITECTURES:
            raise ValueError(f"its architecture is {architecture!r}; known are {', '.join(ARCHITECTURES)}")
        config = ARCHITECTURES[architecture].from_dict(config)
        named = dict(named)
        head = named.pop("lm_head.weight", None)
        if head is not None and not torch.equal(head, named["token_emb.weight"]):
            raise ValueError("its lm_head.weight is not its token_emb.weight, but this model's head is tied")
        expected = {**config.shapes(), **{name: value.shape for name, value in config.frozen(0).items()}}
        for name in expected | named:
            found = tuple(named[name].shape) if name in named else "missing"
            wanted = tuple(expected[name]) if name in expected else "unknown"
            if found != wanted:
                raise ValueError(f"{name} is {found} in the file, {wanted} by its model_config")
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else error
        problem = f"{path} is not a checkpoint of an addition model ({reason})"
        raise SystemExit(f"{problem}; give a best.pt or last.pt of addition.train") from None
    return config, {name: named[name] for name in expected}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", type=Path, metavar="CKPT")
    parser.add_argument("--device", default="cpu", choices=("auto", "cpu", "cuda", "mps"))
    parser.add_argument("--batch-size", type=int, default=10_000, help="pairs decoded at once; bounds memory on a GPU")
    parser.add_argument("--output", type=Path, help="also write the figures to this JSON file")
    options = parser.parse_args(argv)
    if options.batch_size < 1:
        parser.error(f"--batch-size is {options.batch_size}; it must be at least 1")
    device = pick_device(options.device)
    loaded = [(path, *load(path)) for path in options.checkpoints]  # check all files before evaluating the first
    found = []
    for path, config, named in loaded:
        named = {name: value.to(device) for name, value in named.items()}
        by_seed = score(pick_engine(device), config, named, device, options.batch_size)
        parameters, errors = model.count(config), sum(by_seed.values())
        exact = (PAIRS - errors) / PAIRS
        found.append({"path": str(path), "parameters": parameters, "aggregate_exact_match": exact, "errors": errors,
                      "pairs": PAIRS, "errors_by_seed": by_seed})  # fmt: skip
        print(f"{path}  {parameters} parameters  exact match {exact:.5f}  {errors:,} errors in {PAIRS:,}", flush=True)
    if options.output:
        with disk.writing(options.output.parent, options.output.name):
            disk.write_json(options.output, {"checkpoints": found})
    return found


if __name__ == "__main__":
    main()
