"""Checks any AdderBoard submission: by the leaderboard's protocol, then on many pairs with long carries.

python -m addition.verify adder.py --pairs 100000 --output verified.json

A submission is one file with build_model() -> (model, metadata) and add(model, a, b) -> int. An optional
add_batch(model, a_list, b_list) -> list of int makes the second check take seconds instead of minutes.

A file that does not attend, picks no token by its scores, or has no parameter with an effect is refused. "strictly"
also counts the entries of frozen tensors, except zeros, and the numbers with a point in the source that are no entry
of a tensor (an epsilon, the base of rotary angles). "no effect" names entries of parameters that change no score. Exit
status 1: it does not qualify, or misses an edge case.
"""

import argparse
import ast
import contextlib
import operator
import random
import sys
import types
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from torch.utils._python_dispatch import TorchDispatchMode

from addition.train import carry_pairs
from plumbing import disk

EDGES = (
    (0, 0), (0, 1), (9999999999, 0), (9999999999, 1), (9999999999, 9999999999), (5000000000, 5000000000),
    (1111111111, 8888888889), (1234567890, 9876543210), (9999999999, 9999999999), (1, 9999999999),
)  # fmt: skip
PUBLIC = 10_000  # pairs of the leaderboard's check, beside the edge cases
QUALIFIES = 0.99
AT_ONCE = 1_000  # pairs given to add_batch
PROBES = ((1234567890, 9876543210), (9999999999, 1), (4067185293, 3950274816))  # sums on which a model is examined
DIGITS = 20  # of a prompt
MOST_ENTRIES = 5_000  # of a model, for each to be tried by itself
AGREE = 200  # pairs on which add_batch must say what add says


def count(model):
    """The number of parameters; tied ones share their storage and count once."""
    found = {(p.untyped_storage().data_ptr(), p.storage_offset(), p.numel()) for p in model.parameters()}
    return sum(size for _, _, size in found)


def read(path):
    """The submission as a module, executed from its source: the bytecode that an import finds may be outdated."""
    path = Path(path)
    try:
        source = path.read_text(encoding="utf-8")
        tree = ast.parse(source)
    except OSError as error:
        raise SystemExit(f"{path} cannot be read ({error.strerror}); give the path of a submission") from None
    except (SyntaxError, ValueError) as error:
        raise SystemExit(f"{path} is not a Python file ({error}); addition.export makes one of a checkpoint") from None
    root = Path(__file__).parents[1]
    ours = {file.stem for file in root.glob("*.py")} | {file.parent.name for file in root.glob("*/__init__.py")}
    for node in ast.walk(tree):
        names = [name.name for name in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = ["." * node.level + (node.module or "")]
        for name in names:
            if name.split(".")[0] in ("", *ours):
                raise SystemExit(f"{path}, line {node.lineno}, imports {name}; a submission is one file of its own")
    module = types.ModuleType("submission")
    module.__file__ = str(path)
    sys.modules["submission"] = module  # dataclasses look their module up
    try:
        exec(compile(source, str(path), "exec"), module.__dict__)
    except Exception as error:
        raise SystemExit(f"{path} cannot be imported ({type(error).__name__}: {error})") from error
    return module


def build(path, module):
    for name in ("build_model", "add"):
        if not callable(getattr(module, name, None)):
            raise SystemExit(f"{path} has no function {name}; a submission has build_model() and add(model, a, b)")
    try:
        model, metadata = module.build_model()
        return model, dict(metadata), count(model)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise SystemExit(f"{path}: build_model() must return a torch module and a dict ({reason})") from error


class Changed(Exception):
    """A score is another one than before."""


class Decisions(TorchDispatchMode):
    """What a submission computes: the scores that it picks tokens from, and whether it attends to positions. It ends
    with Changed where scores differ from those of `before`."""

    PICKS = ("aten.argmax", "aten.max.dim", "aten.topk", "aten.sort")

    def __init__(self, before=()):
        super().__init__()
        self.before, self.scores, self.attends = before, [], False

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        name = str(function)
        if name.startswith(self.PICKS) and arguments[0].is_floating_point():
            self.scores.append(arguments[0].detach().flatten().clone())
            now = len(self.scores)
            if self.before and not (now <= len(self.before) and torch.equal(self.scores[-1], self.before[now - 1])):
                raise Changed
        found = function(*arguments, **(options or {}))
        over_positions = found.shape[-1:] >= (DIGITS,) if isinstance(found, torch.Tensor) else False
        if "scaled_dot_product" in name or (over_positions and ("softmax" in name or name.startswith("aten.exp."))):
            self.attends = True
        return found


def decisions(module, model, before=()):
    watch = Decisions(before)
    with watch:
        for a, b in PROBES:
            module.add(model, a, b)
    return watch


def without_effect(module, model, before):
    """{parameter: its entries that change no score}; each is changed by itself, by at least its own size."""
    found = {}
    for name, p in model.named_parameters():
        for place, at in enumerate(np.ndindex(*p.shape)):
            value = p.data[at].clone()
            p.data[at] += value.abs() + 1
            with contextlib.suppress(Changed):
                if len(decisions(module, model, before).scores) == len(before):
                    found.setdefault(name, []).append(place)
            p.data[at] = value
    return found


def tensors(value, depth=5):
    """The tensors in lists, dicts and plain objects."""
    if isinstance(value, torch.Tensor):
        yield value
    elif depth and not isinstance(value, (torch.nn.Module, types.ModuleType, type)):
        inside = getattr(value, "__dict__", value)
        if isinstance(inside, dict):
            inside = list(inside.values())
        for part in inside if isinstance(inside, (list, tuple)) else ():
            yield from tensors(part, depth - 1)


def fixed(module, model, source):
    """(entries other than 0 of tensors that are not parameters, {number in the source, but in no tensor: how often})"""
    known = {p.untyped_storage().data_ptr() for p in model.parameters()}
    found = list(tensors([vars(module), *map(vars, model.modules())]))  # with the parameters and buffers of each module
    frozen = {t.untyped_storage().data_ptr(): int(t.count_nonzero()) for t in found}
    values = {round(abs(x), 12) for t in found for x in t.detach().double().flatten().tolist()}
    constants = [node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)]
    literals = Counter(value for value in constants if type(value) is float)
    outside = {x: n for x, n in literals.items() if round(float(np.float32(x)), 12) not in values}
    return sum(size for pointer, size in frozen.items() if pointer not in known), outside


def examine(path, module, model):
    """Refuse what is no trained Transformer; -> what it consists of beside its parameters."""
    watch = decisions(module, model)
    if not watch.attends:
        raise SystemExit(f"{path} does not attend: add() computes no softmax over the {DIGITS} digits of a prompt")
    if not watch.scores:
        raise SystemExit(f"{path} picks no token: add() must take each digit from the model's scores, by argmax")
    entries = count(model)
    idle = without_effect(module, model, watch.scores) if entries <= MOST_ENTRIES else {}
    if not entries or sum(map(len, idle.values())) == sum(p.numel() for p in model.parameters()):
        raise SystemExit(f"{path}: no entry of its parameters changes a score, so nothing in it is trained")
    frozen, numbers = fixed(module, model, Path(path).read_text(encoding="utf-8"))
    return {
        "frozen": frozen, "numbers": {repr(x): n for x, n in sorted(numbers.items())},
        "strictly": entries + frozen + sum(numbers.values()), "without_effect": idle,
    }  # fmt: skip


def ask(path, module, model, pairs, title, batched):
    """The submission's sums, by add_batch or by add, with a progress bar on a terminal."""
    answers, at_once = [], AT_ONCE if batched else 1
    for start in track(range(0, len(pairs), at_once), title, transient=True, disable=not sys.stdout.isatty()):
        a, b = (list(numbers) for numbers in zip(*pairs[start : start + at_once]))
        try:
            found = module.add_batch(model, a, b) if batched else [module.add(model, a[0], b[0])]
            answers += map(operator.index, found)
            if len(answers) != start + len(a):
                raise ValueError(f"{len(answers) - start} answers to {len(a)} pairs")
        except Exception as error:
            form = f"add(model, {a[0]}, {b[0]}) must return an int"
            if batched:
                form = f"add_batch must return a list of int; it fails on {len(a)} pairs, the first ({a[0]}, {b[0]})"
            raise SystemExit(f"{path}: {form} ({error!r})") from error
    return answers


def check(path, pairs=100_000):
    """The results of both checks."""
    module = read(path)
    model, metadata, parameters = build(path, module)
    try:
        found = examine(path, module, model)
    except Exception as error:
        a, b = PROBES[0]
        raise SystemExit(f"{path}: add(model, {a}, {b}) must return an int ({error!r})") from error
    draw = random.Random(2025)
    public = [*EDGES, *((draw.randint(0, 9999999999), draw.randint(0, 9999999999)) for _ in range(PUBLIC))]
    answers = ask(path, module, model, public, "public", batched=False)
    right = sum(answer == a + b for (a, b), answer in zip(public, answers))
    failed = [[a, b, answer] for (a, b), answer in zip(EDGES, answers) if answer != a + b]

    hard = carry_pairs(2026, pairs).tolist()
    batched = callable(getattr(module, "add_batch", None))
    answers = ask(path, module, model, hard, "carries", batched)
    single = ask(path, module, model, hard[:AGREE], "add_batch", False) if batched else []
    for (a, b), one, many in zip(hard, single, answers):
        if one != many:
            wrong = f"{a} + {b} is {one} by add, but {many} by add_batch"
            raise SystemExit(f"{path}: {wrong}; correct add_batch or remove it")
    return {
        "path": str(path), "name": str(metadata.get("name")), "author": str(metadata.get("author")),
        "parameters": parameters, "claimed_parameters": metadata.get("params"), **found,
        "edge_cases": len(EDGES), "edge_cases_failed": failed,
        "public_pairs": len(public), "public_errors": len(public) - right, "public_exact": right / len(public),
        "qualifies": right >= QUALIFIES * len(public), "carry_pairs": len(hard),
        "carry_errors": sum(answer != a + b for (a, b), answer in zip(hard, answers)), "torch": torch.__version__,
    }  # fmt: skip


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="the submission")
    parser.add_argument("--pairs", type=int, default=100_000, help="pairs with long carries (default 100000)")
    parser.add_argument("--output", type=Path, help="also write the report to this JSON file")
    options = parser.parse_args(argv)
    if options.pairs < 1:
        parser.error(f"--pairs is {options.pairs}; it must be at least 1")
    torch.set_num_threads(1)  # one sum at a time: more threads would wait for each other
    r = check(options.file, options.pairs)
    claim = "" if r["claimed_parameters"] == r["parameters"] else f", but metadata claims {r['claimed_parameters']}"
    print(f"{options.file}: {r['name']}")
    print(f"parameters  {r['parameters']}{claim}")
    numbers = ", ".join(f"{x} ({n} times)" if n > 1 else x for x, n in r["numbers"].items())
    print(f"strictly    {r['strictly']}, with {r['frozen']} frozen entries and the numbers {numbers or '(none)'}")
    for name, places in r["without_effect"].items():
        print(f"no effect   {name}, {len(places)} of its entries: {', '.join(map(str, places[:12]))}")
    print(f"edge cases  {r['edge_cases'] - len(r['edge_cases_failed'])}/{r['edge_cases']} passed")
    for a, b, answer in r["edge_cases_failed"]:
        print(f"            {a} + {b} = {a + b}, not {answer}")
    verdict = "qualifies" if r["qualifies"] else f"does not qualify: {QUALIFIES:.0%} are needed"
    print(f"public      {r['public_exact']:.3%} of {r['public_pairs']:,} exact; {verdict}")
    print(f"carries     {r['carry_errors']:,} errors in {r['carry_pairs']:,}")
    if options.output:
        with disk.writing(options.output.parent, options.output.name):
            disk.write_json(options.output, r)
    if not r["qualifies"] or r["edge_cases_failed"]:
        raise SystemExit(1)
    return r


if __name__ == "__main__":
    main()
