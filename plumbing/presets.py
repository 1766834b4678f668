"""Presets: one rule a field, by which every experiment of the log is made smaller in the same way.

A rule takes a field's value and the whole config, and gives the new value: what an experiment changes stays so.
"""

import dataclasses
import math

from data.store import KAGGLE


def divisor(config, at_most):
    """What divides steps, warm-up and phases alike: less than `at_most` where fewer than 600 steps would be left."""
    return max(1.0, min(at_most, config.steps / 600))


def schedule(at_most):
    """The rules of all that is counted in steps."""
    return {
        "steps": lambda v, c: round(v / divisor(c, at_most)),
        "warmup": lambda v, c: round(v / divisor(c, at_most)),
        "plain_steps": lambda v, c: round(v / divisor(c, at_most)),
        "phases": lambda v, c: tuple((round(until / divisor(c, at_most)), *ratings) for until, *ratings in v),
        "ema": lambda v, c: round(1 - (1 - v) * divisor(c, at_most), 6),  # over the same share of the run
    }


def generated(config, kaggle, extreme):
    """Generated puzzles in place of a real set: clue counts at which a network of this size solves some, not all."""
    fewest, most = kaggle if config.data == "kaggle" else extreme
    if getattr(config, "edges", KAGGLE)[0] >= 3.0:  # the hardest two of Kaggle's five buckets only
        most = round(fewest + (most - fewest) / 4)
    return config.data if config.data == "minimal" else f"generated:{fewest}-{most}"


MINI = schedule(40) | {
    "width": lambda v, c: max(8, v // 2),  # at a quarter, three times more steps pass before anything is solved
    "mlp": lambda v, c: max(8, v // 4),
    "layers": lambda v, c: max(1, v // 2),
    "heads": lambda v, c: max(1, v // 2),
    "iterations": lambda v, c: max(1, 3 * v // 8),
    "dropout": lambda v, c: 0.0,  # most mini runs see a puzzle twice at most: nothing to regularise
    "batch": lambda v, c: max(1, round(math.log2(max(1, v / 16)))),  # 128 -> 3, 512 -> 5, 2048 -> 7, 4096 -> 8
    "lr": lambda v, c: round(v * 10 / 3, 6),  # narrow layers want larger steps
    "rho": lambda v, c: v / 5,  # fewer weights have a smaller norm
    **dict.fromkeys(("train_puzzles", "train_per_bucket", "puzzles", "copies"), lambda v, c: v // 50),
    "test_per_bucket": lambda v, c: 1_000 // (len(getattr(c, "edges", KAGGLE)) - 1),  # 1,000 in all
    "data": lambda v, c: generated(c, kaggle=(42, 54), extreme=(50, 62)),
    "hard": lambda v, c: v and "generated",
    "report_every": lambda v, c: 50,
    "evaluate_every": lambda v, c: 250,
    "save_every": lambda v, c: 100,
}
THE_LOGS = ("width", "mlp", "layers", "heads", "iterations", "dropout", "lr", "rho")
GPU = (
    MINI
    | schedule(25)
    | {
        **dict.fromkeys(THE_LOGS, lambda v, c: v),
        "batch": lambda v, c: 32 * max(1, round(math.log2(max(1, v / 16)))),  # 128 -> 96, 512 -> 160, 4096 -> 256
        "train_puzzles": lambda v, c: v // 10 or 300_000,
        "train_per_bucket": lambda v, c: v // 2,
        "puzzles": lambda v, c: v,
        "copies": lambda v, c: v // 25,  # seen as often as in the full run
        "test_per_bucket": lambda v, c: 1_000,
        "data": lambda v, c: generated(c, kaggle=(28, 40), extreme=(26, 38)),
        "report_every": lambda v, c: 100,
        "evaluate_every": lambda v, c: 400,
        "save_every": lambda v, c: 500,
    }
)
SMOKE = MINI | {
    "width": lambda v, c: max(8, v // 8),
    "mlp": lambda v, c: max(8, v // 8),
    "layers": lambda v, c: max(1, v // 4),
    "heads": lambda v, c: max(1, v // 4),
    "iterations": lambda v, c: max(1, v // 8),
    "dropout": lambda v, c: v,
    "batch": lambda v, c: max(2, 2 * round(math.sqrt(v) / 8)),
    "steps": lambda v, c: max(4, v // 10_000),
    "warmup": lambda v, c: v // 1_000,
    "phases": lambda v, c: tuple((until // 10_000, *ratings) for until, *ratings in v),
    "train_puzzles": lambda v, c: min(v or 400, 400),
    "train_per_bucket": lambda v, c: min(v, 80),
    "test_per_bucket": lambda v, c: 20,
    "test_iterations": lambda v, c: (),
    "report_every": lambda v, c: 1,
    "evaluate_every": lambda v, c: 4,
    "save_every": lambda v, c: 2,
}
PRESETS = {"full": {}, "gpu": GPU, "mini": MINI, "smoke": SMOKE}
# Fields that no preset changes. A preset names every field of every config, here or in a rule.
UNCHANGED = {"name", "seed", "resume", "device", "compile", "wandb", "runs", "preset", "test_iterations", "precision"}
UNCHANGED |= {"edges", "muon_lr", "weight_decay", "depth", "lifetime", "easy_steps", "encoders", "micro_batches"}
UNCHANGED |= {"cycles", "low_cycles", "clip", "pool", "descent", "rounds", "solved_lifetime", "sharp", "rise", "fall"}
UNCHANGED |= {"apart", "hard_share", "plain", "explore", "merge", "supposing_lifetime", "supposed_true"}
UNCHANGED |= {"keep_every", "verdict", "test_descent", "judge", "high", "spread", "patience", "easy", "noise", "sums"}
UNCHANGED |= {"again", "late", "late_from", "refuted", "restart", "read", "first", "between", "lies", "denied"}
UNCHANGED |= {"search_noise", "asked", "most", "effort"}


def with_preset(config, preset):
    """This config shrunk by the preset's rules."""
    rules = PRESETS[preset]
    names = [field.name for field in dataclasses.fields(config)]
    if rules and (unknown := set(names) - set(rules) - UNCHANGED):
        raise SystemExit(
            f"--preset {preset} has no rule for {', '.join(sorted(unknown))}; add one to MINI in plumbing/presets.py, "
            "or the name to UNCHANGED"
        )
    changed = {name: rules[name](getattr(config, name), config) for name in names if name in rules}
    return dataclasses.replace(config, **changed, preset=preset)
