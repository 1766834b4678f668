"""The family of experiments: every file names its parent, and a test fails where a copy differs without saying so.

python lineage.py tree                   each experiment: changed lines, the log's figure, ours
python lineage.py diff exp_cosine_gelu   what it changes in its parent, and nothing else
python lineage.py propagate exp_sam      carry a correction in exp_sam.py to all its descendants
python lineage.py plot                   the tree as a picture

A line that differs from the parent says `# changed: why`. A child of exp_x inherits that line as `# why (exp_x)`, and
so do the child's descendants; all commands compare with the parent's text in this form.
"""

import argparse
import ast
import difflib
import functools
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from plumbing import disk

ROOT = Path(__file__).resolve().parent
PATTERNS = [folder + name for folder in ("", "pos_embedding/") for name in ("sudoku", "exp_", "train_", "ablation_")]
# ours; scripts/ladder.sh leaves them out
ON_CANDIDATES = ("exp_iterate", "exp_hard", "exp_deep", "exp_suppose", "exp_speedrun")
DEEP = "fresh noise restarts ema two random identity last sums attention failures refuted bf16"
ON_CANDIDATES += tuple(f"exp_deep_{name}" for name in DEEP.split())
FIELDS = ("Parent", "Change", "Hypothesis", "Log")
TEST_SETS = {  # by `data` and `edges` of Config
    ('"extreme-test"', "common.EXTREME"): "sudoku-extreme, natural mix",
    ('"extreme"', "common.EXTREME"): "sudoku-extreme, five buckets",
    ('"kaggle"', "common.KAGGLE"): "Kaggle, five buckets",
    ('"kaggle"', "common.EASIEST"): "Kaggle, easiest only",
}


@dataclass
class Experiment:
    path: Path
    source: str
    fields: dict  # Parent, Change, Hypothesis, Log
    parent: Path | None = None

    @property
    def name(self):
        return self.path.stem

    @property
    def on_candidates(self):
        """Ours, of exp_iterate's kind: made for a CPU, with a size and data of its own at every preset."""
        return self.name in ON_CANDIDATES

    @property
    def title(self):
        return docstring(self.source).split("\n")[0].rstrip(".")

    @property
    def figure(self):
        """The first words of `Log:`, up to a comma or the like: 83.6 %, 643/1000 easy puzzles after 100k steps."""
        return re.split(r",\s|[;:(]|\.(?:\s|$)", self.fields["Log"].split("\n")[0])[0].strip() or "-"


# ---------------------------------------------------------------- files


def files(root=ROOT):
    return sorted(path for pattern in PATTERNS for path in Path(root).glob(f"{pattern}*.py"))


def find(root=ROOT):
    """{path: experiment} of all files that have a `Parent:` line in their docstring; nothing is imported."""
    found, paths = {}, {}
    for path in files(root):
        source = path.read_bytes()
        fields = read_fields(docstring(source, path))
        if "Parent" in fields:
            found[path] = Experiment(path, source.decode(), dict.fromkeys(FIELDS, "") | fields)
            if paths.setdefault(path.stem, path) != path:
                raise SystemExit(f"{path} and {paths[path.stem]} have the same name; rename one of them")
    for experiment in found.values():
        wanted = (experiment.fields["Parent"].split() or ["-"])[0].rstrip(".,")
        if wanted != "none":
            experiment.parent = paths.get(Path(wanted).stem, Path(root) / wanted)
    return found


def module(name):
    """Import an experiment by its name: exp_x, or pos_embedding.exp_x where it stands in that folder."""
    path = pick({path: path for path in files()}, name)
    return importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))


@functools.cache
def docstring(source, path="<string>"):
    try:
        return ast.get_docstring(ast.parse(source, path)) or ""
    except (SyntaxError, ValueError) as error:  # ValueError: the file has a null byte
        raise SystemExit(f"{path}: not valid Python ({error}); correct the file first") from None


def read_fields(text):
    """A field's text ends at the next field or at an empty line."""
    fields, current = {}, None
    for line in text.splitlines():
        match = re.match(rf"({'|'.join(FIELDS)}):\s*(.*)", line)
        if match:
            current = match[1]
            fields[current] = match[2].strip()
        elif line.strip() and current:
            fields[current] += "\n" + line.strip()
        else:
            current = None
    return fields


def pick(family, name):
    """The experiment of this name; exp_x, exp_x.py and pos_embedding/exp_x.py are the same one."""
    names, stem = {path.stem: experiment for path, experiment in family.items()}, Path(name).stem
    if stem not in names:
        near = " or ".join(difflib.get_close_matches(stem, names, 3))
        hint = f"do you mean {near}?" if near else "python lineage.py tree lists them"
        raise SystemExit(f"there is no experiment {name}; {hint}")
    return names[stem]


def descendants(family, path, indent=""):
    """(branches of the tree as text, experiment) of all that descend from this path, parents before children."""
    siblings = [experiment for experiment in family.values() if experiment.parent == path]
    for experiment in siblings:
        last = experiment is siblings[-1]
        yield indent + ("└ " if last else "├ ") if path else "", experiment
        yield from descendants(family, experiment.path, indent + ("  " if last else "│ ") if path else "")


def walk(family):
    """The descendants of no parent, which are all experiments; a missing parent or a cycle is an error."""
    for experiment in family.values():
        if experiment.parent and experiment.parent not in family:
            wanted = experiment.fields["Parent"] or "(empty)"
            raise SystemExit(f"{experiment.path.name}: its parent {wanted} is not an experiment here")
    rows = list(descendants(family, None))
    if len(rows) < len(family):
        lost = sorted(set(family) - {experiment.path for _, experiment in rows})
        raise SystemExit(f"these descend from each other in a circle: {', '.join(path.name for path in lost)}")
    return rows


def normalise(source, name):
    """The text of an experiment as its children inherit it: `# changed: why` becomes `# why (name)`."""
    return re.sub(r"# changed(?::( ?.*?))? *$", rf"#\1 ({name})", source, flags=re.MULTILINE)


def span(source):
    """The lines [start, end) of the module's docstring, quotes included."""
    tree = ast.parse(source)
    return (tree.body[0].lineno - 1, tree.body[0].end_lineno) if ast.get_docstring(tree) is not None else (0, 0)


def changed_lines(old, new):
    """How many lines differ, the docstrings aside; a line replaced counts once."""
    old, new = (text.splitlines()[span(text)[1] :] for text in (old, new))
    steps = difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
    return sum(max(i2 - i1, j2 - j1) for tag, i1, i2, j1, j2 in steps if tag != "equal")


# ---------------------------------------------------------------- results


def runs(name, root=ROOT):
    """The kept runs of an experiment: each results/<experiment>/<run>/summary.json, with these in addition.

    `run`: the folder's name. `group`: that name without its seed, which is the preset, or the name given to a run that
    differs from its experiment by a flag. `puzzles`: its test set. From config.json: seed, preset, iterations.
    """
    kept = []
    for path in sorted(Path(root).glob(f"results/{name}/*/summary.json")):
        try:
            summary, config = (json.loads(file.read_text()) for file in (path, path.with_name("config.json")))
            float(summary["diverged_at"] if summary["solved"] is None else summary["solved"])  # one of them is a number
            found = {field: summary[field] for field in ("seconds", "hardware", "command")}
            found |= {field: config[field] for field in ("seed", "preset", "iterations")}
            found["puzzles"] = f"{config.get('data')} {config.get('edges')} {config.get('test_per_bucket')}"
            group = path.parent.name.removesuffix(f"-seed{config['seed']}")
            kept.append(summary | found | {"run": path.parent.name, "group": group})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SystemExit(
                f"{path}: not the summary of a run beside its config.json ({type(error).__name__}: {error}); "
                f"copy both again: python report.py keep runs/{name}/{path.parent.name}"
            ) from None
    return kept


def ours(name, root=ROOT):
    """Our own figure: (group, per cent solved or None, text): the mean over seeds of full runs, else gpu, else mini."""
    kept = [run for run in runs(name, root) if run["group"] == run["preset"]]
    group = min((run["group"] for run in kept), default="not run")  # in alphabetical order
    kept = [run for run in kept if run["group"] == group]
    solved = [100 * run["solved"] for run in kept if run["solved"] is not None]
    notes = [group] if kept and group != "full" else []
    notes += [f"mean of {len(solved)}"] if len(solved) > 1 else []
    notes += [f"diverged at step {run['diverged_at']}" for run in kept if run["solved"] is None]
    mean = sum(solved) / len(solved) if solved else None
    figure = f"{mean:.1f} %" if solved else "-" if kept else "not run"
    return group, mean, f"{figure} ({', '.join(notes)})" if notes else figure


# ---------------------------------------------------------------- tree and diff


def tree(root=ROOT):
    """The table as text: one line an experiment, indented under its parent."""
    family = find(root)
    table = [("experiment", "lines", "the log", "ours")]
    for branch, experiment in walk(family):
        parent = family.get(experiment.parent)
        lines = changed_lines(normalise(parent.source, parent.name), experiment.source) if parent else "-"
        table.append((branch + experiment.name, str(lines), experiment.figure, ours(experiment.name, root)[2]))
    wide = [max(len(cells[i]) for cells in table) for i in range(4)]
    return "\n".join(f"{a:<{wide[0]}}  {b:>{wide[1]}}  {c:<{wide[2]}}  {d}".rstrip() for a, b, c, d in table)


def diff(name, root=ROOT):
    """The unified diff to the parent, as lines."""
    family = find(root)
    experiment = pick(family, name)
    walk(family)  # ends here if a parent is missing
    if not experiment.parent:
        return [f"{experiment.path.name} has no parent"]
    old = family[experiment.parent]
    names = (path.relative_to(root).as_posix() for path in (old.path, experiment.path))
    texts = (text.splitlines() for text in (normalise(old.source, old.name), experiment.source))
    return list(difflib.unified_diff(*texts, *names, lineterm="", n=2))


def log_percent(text):
    """83.6 from '83.6 %', 64.3 from '643/1000 easy puzzles'; None where the log has no figure."""
    match = re.match(r"~?(\d+(?:\.\d+)?)\s*(?:%|/\s*(\d+))", text)
    return 100 * float(match[1]) / float(match[2] or 100) if match else None


def test_set(experiment):
    """Where its Config is tested; figures of different test sets do not compare."""
    data, edges = (re.search(rf"^    {name}: .*? = (\S+)", experiment.source, re.M) for name in ("data", "edges"))
    return TEST_SETS.get((data and data[1], edges and edges[1]), "other puzzles")


def plot_tree(output, root):
    """The tree as a picture, with what each change did to the log's figure and to ours."""
    from plumbing import picture  # matplotlib takes a second to import

    family, rows = find(root), []
    for branch, experiment in walk(family):
        parent, test = family.get(experiment.parent), test_set(experiment)
        same = parent and test_set(parent) == test
        logs = [log_percent(e.figure) if e else None for e in (experiment, parent if same else None)]
        own, old = (
            {(run["seed"], run["puzzles"]): run["solved"] or 0 for run in runs(e.name, root) if run["group"] == "mini"}
            for e in (experiment, parent or experiment)
        )  # a run that diverged solved nothing
        mini = [100 * (own[key] - old[key]) for key in own if parent and key in old]
        rows.append(picture.Row(branch + experiment.name, test, experiment.figure, *logs, mini))
    disk.replace(output, lambda file: picture.draw(rows, file, output.suffix[1:]))


# ---------------------------------------------------------------- propagate


def committed(root, path, revision="HEAD"):
    """The file as it stands in that revision, or None."""
    name = f"{revision}:./{path.relative_to(root).as_posix()}"
    shown = subprocess.run(["git", "show", name], cwd=root, capture_output=True)
    return shown.stdout.decode() if shown.returncode == 0 else None


def in_place_of(parent, text, child, root):
    """A parent's text with the child's own title and fields, so that only the code and the usage lines are merged."""

    def parts(text):
        start, end = span(text)
        lines = text.splitlines(keepends=True)
        logged = next((i for i in range(start, end) if re.match(r"\s*Log:", lines[i])), end)
        stop = next((i for i in range(logged, end) if not lines[i].strip()), end)
        return "".join(lines[:stop]), "".join(lines[stop:end]), "".join(lines[end:])

    _, usage, code = parts(normalise(text, parent.name))
    usage = re.sub(rf"(?:\w+/)?\b{parent.name}\.py\b", child.path.relative_to(root).as_posix(), usage)
    head, own_usage, _ = parts(child.source)
    return head + (usage if usage and own_usage else own_usage) + code


def merge(parent, old, new, child, root):
    """git's three-way merge of a parent's change into its child. -> (the child's new text, number of conflicts)"""
    texts = (child.source, *(in_place_of(parent, text, child, root) for text in (old, new)))
    with tempfile.TemporaryDirectory() as folder:
        names = (child.path.name, f"{parent.path.name} before", f"{parent.path.name} after")  # as in the markers
        for name, text in zip(names, texts):
            Path(folder, name).write_bytes(text.encode())
        # zdiff3 also shows the common ancestor: without it, a deletion against a modification looks like an addition.
        done = subprocess.run(["git", "merge-file", "-p", "--zdiff3", *names], cwd=folder, capture_output=True)
    if not 0 <= done.returncode < 128:
        raise SystemExit(f"git merge-file failed on {child.path.name}: {done.stderr.decode().strip()}")
    return done.stdout.decode(), done.returncode


def propagate(name, root=ROOT, base="HEAD", dry_run=False, force=False):
    """Merge what changed in this experiment since `base` into its children, and theirs into theirs. -> exit code

    Title and fields of the docstrings stay each file's own. Conflicts leave markers and end that branch.
    """
    family = find(root)
    source = pick(family, name)
    walk(family)  # ends here if a parent is missing
    below = [child for _, child in descendants(family, source.path)]
    before = committed(root, source.path, base)
    if before is None:
        raise SystemExit(f"git has no {source.path.name} in {base}; commit it before you correct it, or give --base")
    if before == source.source:
        raise SystemExit(f"{source.path.name} is as in {base}: nothing to carry; after a commit give --base HEAD~1")
    if "\n<<<<<<< " in source.source:
        raise SystemExit(f"{source.path.name} still has conflict markers; resolve them, then propagate it")
    heads = {experiment.path: committed(root, experiment.path) for experiment in below}
    dirty = ", ".join(child.path.name for child in below if heads[child.path] != child.source)
    if dirty and not force:
        raise SystemExit(f"not committed: {dirty}; commit them first, or give --force to merge into them as they are")

    changed, merged, conflicts = {source.path: (before, source.source)}, {}, {}
    for child in below:
        if child.parent in changed:
            text, count = merge(family[child.parent], *changed[child.parent], child, root)
            own = heads[child.path] or child.source
            if text != child.source:
                merged[child.path] = text
            if count:
                conflicts[child.path] = count
            elif text != own:
                changed[child.path] = own, text
    for path, text in merged.items():
        if not dry_run:
            disk.replace(path, lambda file, text=text: file.write(text.encode()))
        print(f"{path.relative_to(root)}: {f'conflicts: {conflicts[path]}' if path in conflicts else 'merged'}")
    print(f"{len(merged)} of {len(below)} descendants {'would change' if dry_run else 'changed'}")
    for path in conflicts:
        count = len(list(descendants(family, path)))
        onward = f", then python lineage.py propagate {path.stem} (its {count} descendants wait)" if count else ""
        print(f"conflict: resolve the <<<<<<< in {path.relative_to(root)}{onward}")
    return 1 if conflicts else 0


def main(argv=None, root=ROOT):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("tree", help="every experiment with its changed lines, the log's figure and ours (results/)")
    one = commands.add_parser("diff", help="what an experiment changes in its parent")
    one.add_argument("experiment")
    down = commands.add_parser("propagate", help="merge a correction into all descendants (git merge-file)")
    down.add_argument("experiment")
    down.add_argument("--base", default="HEAD", help="the revision before the correction (default: HEAD)")
    down.add_argument("--dry-run", action="store_true", help="say what would happen, write nothing")
    down.add_argument("--force", action="store_true", help="merge into files with uncommitted changes too")
    picture = commands.add_parser("plot", help="the tree as a picture")
    picture.add_argument("--output", default="lineage.png", help="file to write (default: lineage.png)")
    asked = parser.parse_args(argv)
    if asked.command == "tree":
        print(tree(root))
    elif asked.command == "diff":
        colours = {"@": 36, "+": 32, "-": 31} if sys.stdout.isatty() and "NO_COLOR" not in os.environ else {}
        for line in diff(asked.experiment, root):
            print(f"\033[{colours[line[0]]}m{line}\033[0m" if line[:1] in colours else line)
    elif asked.command == "propagate":
        return propagate(asked.experiment, root, asked.base, asked.dry_run, asked.force)
    else:
        plot_tree(output := picture_path("--output", asked.output), root)
        print(f"wrote {output}")
    return 0


def picture_path(flag, given):
    """The file to draw into; what is wrong with it is said before any work."""
    path = Path(given if Path(given).suffix or os.path.isdir(given) else f"{given}.png")
    writable = os.access(path if path.exists() else path.parent, os.W_OK)
    if path.is_dir() or path.suffix.lower() not in (".png", ".svg", ".pdf") or not writable:
        raise SystemExit(f"{flag} {given}: expected a .png, .svg or .pdf file in a folder that can be written to")
    return path


def run_command(main):
    """Run a command and exit: no traceback after Ctrl-C, a closed pipe (`| head`) or a file that cannot be used."""
    try:
        try:
            code = main()
        finally:
            sys.stdout.flush()
    except (KeyboardInterrupt, BrokenPipeError):
        os._exit(130)  # Python's own exit would write to the closed pipe again
    except OSError as error:
        code = f"{error}; check that the file is there and that it may be read or written"
    sys.exit(code)


if __name__ == "__main__":
    run_command(main)
