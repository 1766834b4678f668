"""The family of experiments: every file names its parent, and the copies must not drift apart unseen.

python lineage.py tree                   each experiment: changed lines, the log's figure, ours
python lineage.py diff exp_cosine_gelu   what it changes in its parent, and nothing else
python lineage.py propagate exp_sam      carry a correction in exp_sam.py to all its descendants
python lineage.py plot                   the tree as a picture
"""

import argparse
import ast
import difflib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent
PATTERNS = ("sudoku*.py", "exp_*.py", "train_*.py", "ablation_*.py", "pos_embedding/*.py")
FIELDS = ("Parent", "Change", "Hypothesis", "Log")
TEST_SETS = {  # Config's `edges` say which puzzles a figure is about; figures on different sets do not compare
    "sources.KAGGLE[:2]": ("Kaggle, easiest only", "tab:green"),
    "sources.KAGGLE": ("Kaggle, five buckets", "tab:orange"),
    "sources.EXTREME": ("sudoku-extreme, five buckets", "tab:blue"),
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
    def figure(self):
        """What the log reports, cut to its first few words: 83.6 %, 643/1000 easy puzzles after 100k steps."""
        return re.split(r",\s|[;:(]|\.(?:\s|$)", self.fields.get("Log", "").split("\n")[0])[0].strip() or "-"


# ---------------------------------------------------------------- files


def find(root=ROOT):
    """{path: experiment} of all files that have a `Parent:` line in their docstring; nothing is imported."""
    found = {}
    for path in sorted({path for pattern in PATTERNS for path in Path(root).glob(pattern)}):
        source = path.read_bytes().decode()
        fields = read_fields(docstring(source, path))
        if "Parent" in fields:
            found[path] = Experiment(path, source, fields)
    for experiment in found.values():
        wanted = experiment.fields["Parent"].split()[0] if experiment.fields["Parent"] else ""
        if wanted.rstrip(".,") != "none":
            places = [Path(root) / wanted, experiment.path.parent / wanted]
            experiment.parent = next((p.resolve() for p in places if p.resolve() in found), places[0])
    return found


def docstring(source, path="<string>"):
    try:
        return ast.get_docstring(ast.parse(source)) or ""
    except SyntaxError as error:
        raise SystemExit(f"{path}:{error.lineno}: not valid Python ({error.msg}); mend the file first") from None


def read_fields(text):
    """A field goes on to the next one or to the next empty line."""
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
    names = {experiment.name: experiment for experiment in family.values()}
    stem = Path(name).stem
    if stem not in names:
        near = difflib.get_close_matches(stem, names, 3)
        raise SystemExit(f"there is no experiment {name}; {'do you mean ' + ' or '.join(near) if near else 'see tree'}")
    return names[stem]


def children(family, path):
    return [experiment for experiment in family.values() if experiment.parent == path]


def walk(family):
    """(depth, experiment), parents before children; a parent that is missing or a cycle is an error."""
    for experiment in family.values():
        if experiment.parent and experiment.parent not in family:
            raise SystemExit(
                f"{experiment.path.name}: its parent {experiment.fields['Parent']} is not an experiment here"
            )
    rows, stack = [], [(0, experiment) for experiment in reversed(family.values()) if not experiment.parent]
    while stack:
        depth, experiment = stack.pop()
        rows.append((depth, experiment))
        stack += [(depth + 1, child) for child in reversed(children(family, experiment.path))]
    if len(rows) < len(family):
        lost = sorted(set(family) - {experiment.path for _, experiment in rows})
        raise SystemExit(f"these descend from each other in a circle: {', '.join(path.name for path in lost)}")
    return rows


def span(source):
    """The lines [start, end) of the module's docstring, quotes included."""
    first = ast.parse(source).body[:1]
    if first and isinstance(first[0], ast.Expr) and isinstance(getattr(first[0], "value", None), ast.Constant):
        return first[0].lineno - 1, first[0].end_lineno
    return 0, 0


def changed_lines(old, new):
    """How many lines differ, the docstrings aside; a line replaced counts once."""
    old, new = (text.splitlines()[span(text)[1] :] for text in (old, new))
    steps = difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
    return sum(max(i2 - i1, j2 - j1) for tag, i1, i2, j1, j2 in steps if tag != "equal")


# ---------------------------------------------------------------- tree and diff


def ours(root, name):
    """Our own figure, from results/<experiment>/<preset>-seed<n>/summary.json: the mean over a preset's seeds."""
    solved = {}
    for path in sorted(Path(root).glob(f"results/{name}/*/summary.json")):
        try:
            summary = json.loads(path.read_text())
            preset, figure = summary.get("preset", "full"), float(summary["solved"])
        except (ValueError, KeyError, TypeError):
            raise SystemExit(
                f"{path}: not a run's summary with a number under 'solved'; copy it from runs/ again"
            ) from None
        if path.parent.name.startswith(f"{preset}-seed"):  # others differ from their experiment by a flag
            solved.setdefault(preset, []).append(figure)
    for preset in ("full", *sorted(solved)):
        if preset in solved:
            return preset, 100 * sum(solved[preset]) / len(solved[preset]), len(solved[preset])
    return None


def ours_text(found):
    if not found:
        return "not run"
    preset, mean, count = found
    notes = ([preset] if preset != "full" else []) + ([f"mean of {count}"] if count > 1 else [])
    return f"{mean:.1f} %" + (f" ({', '.join(notes)})" if notes else "")


def tree(root=ROOT):
    """The table as text: one line an experiment, indented under its parent."""
    family = find(root)
    rows, open_branches = [("experiment", "lines", "the log", "ours")], []
    for depth, experiment in walk(family):
        siblings = children(family, experiment.parent) if experiment.parent else [experiment]
        last = experiment is siblings[-1]
        open_branches[max(0, depth - 1) :] = [not last]
        branch = "".join("│ " if is_open else "  " for is_open in open_branches[: depth - 1]) if depth else ""
        branch += ("└ " if last else "├ ") if depth else ""
        lines = str(changed_lines(family[experiment.parent].source, experiment.source)) if experiment.parent else "-"
        rows.append((branch + experiment.name, lines, experiment.figure, ours_text(ours(root, experiment.name))))
    wide = [max(len(row[i]) for row in rows) for i in range(4)]
    return "\n".join(f"{a:<{wide[0]}}  {b:>{wide[1]}}  {c:<{wide[2]}}  {d}".rstrip() for a, b, c, d in rows)


def diff(name, root=ROOT):
    """The unified diff to the parent, as lines."""
    family = find(root)
    experiment = pick(family, name)
    if not experiment.parent:
        return [f"{experiment.path.name} has no parent"]
    walk(family)
    old = family[experiment.parent]
    names = (path.relative_to(root).as_posix() for path in (old.path, experiment.path))
    return list(difflib.unified_diff(old.source.splitlines(), experiment.source.splitlines(), *names, lineterm="", n=2))


def coloured(line):
    for start, colour in (("+++", 1), ("---", 1), ("@@", 36), ("+", 32), ("-", 31)):
        if line.startswith(start):
            return f"\033[{colour}m{line}\033[0m"
    return line


# ---------------------------------------------------------------- propagate


def git(root, *arguments):
    return subprocess.run(["git", *arguments], cwd=root, capture_output=True)


def committed(root, path, revision="HEAD"):
    """The file as it stands in that revision, or None."""
    shown = git(root, "show", f"{revision}:./{path.relative_to(root).as_posix()}")
    return shown.stdout.decode() if shown.returncode == 0 else None


def in_place_of(parent, text, child, root):
    """A parent's text with the child's own title and fields, so that only the code and the usage lines are merged."""

    def parts(text):
        start, end = span(text)
        lines = text.splitlines(keepends=True)
        logged = next((i for i in range(start, end) if re.match(r"\s*Log:", lines[i])), end)
        stop = next((i for i in range(logged, end) if not lines[i].strip()), end)
        return "".join(lines[:stop]), "".join(lines[stop:end]), "".join(lines[end:])

    _, usage, code = parts(text)
    usage = re.sub(rf"(?:\w+/)?\b{parent.name}\.py\b", child.path.relative_to(root).as_posix(), usage)
    head, own_usage, _ = parts(child.source)
    return head + (usage if usage and own_usage else own_usage) + code


def merge(parent, old, new, child, root):
    """git's three-way merge of a parent's change into its child. -> (the child's new text, number of conflicts)"""
    texts = (child.source, *(in_place_of(parent, text, child, root) for text in (old, new)))
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("child", "before", "after")]
        for file, text in zip(files, texts):
            file.write_bytes(text.encode())
        labels = (child.path.name, f"{parent.path.name} before", f"{parent.path.name} after")
        names = [option for label in labels for option in ("-L", label)]
        done = subprocess.run(["git", "merge-file", "-p", *names, *map(str, files)], capture_output=True)
    if not 0 <= done.returncode < 128:
        raise SystemExit(f"git merge-file failed on {child.path.name}: {done.stderr.decode().strip()}")
    return done.stdout.decode(), done.returncode


def propagate(name, root=ROOT, base="HEAD", dry_run=False, force=False):
    """Merge what changed in this experiment since `base` into its children, and theirs into theirs. -> exit code"""
    family = find(root)
    source = pick(family, name)
    below = [experiment for _, experiment in walk(family) if descends(family, experiment, source)]
    before = committed(root, source.path, base)
    if before is None:
        raise SystemExit(f"git has no {source.path.name} in {base}; commit it before you correct it, or give --base")
    if before == source.source:
        raise SystemExit(f"{source.path.name} is as in {base}: nothing to carry; after a commit give --base HEAD~1")
    if "\n<<<<<<< " in source.source:
        raise SystemExit(f"{source.path.name} still has conflict markers; resolve them, then propagate it")
    heads = {experiment.path: committed(root, experiment.path) for experiment in below}
    dirty = [experiment.path.name for experiment in below if heads[experiment.path] != experiment.source]
    if dirty and not force:
        raise SystemExit(
            f"not committed: {', '.join(dirty)}; commit them first, or give --force to merge into them as they are"
        )

    merged, conflicts, queue = {}, [], [(source, before, source.source)]
    while queue:
        parent, old, new = queue.pop(0)
        for child in children(family, parent.path):
            text, count = merge(parent, old, new, child, root)
            if text != child.source:
                merged[child.path] = text
                shown = f"conflicts: {count}" if count else "merged"
                print(f"{child.path.relative_to(root)}: {shown}")
            if count:
                conflicts.append(child)
                continue
            own = heads[child.path] if heads[child.path] is not None else child.source
            if text != own:
                queue.append((child, own, text))
    for path, text in {} if dry_run else merged.items():
        write(path, text)
    done, ends = ("would change", "would conflict") if dry_run else ("changed", "conflict")
    print(f"{len(merged)} of {len(below)} descendants {done}")
    for child in conflicts:
        count = sum(descends(family, experiment, child) for experiment in below)
        onward = f", then python lineage.py propagate {child.name} (its {count} descendants wait)" if count else ""
        print(f"{ends}: resolve the <<<<<<< in {child.path.relative_to(root)}{onward}")
    return 1 if conflicts else 0


def descends(family, experiment, ancestor):
    while experiment.parent:
        if experiment.parent == ancestor.path:
            return True
        experiment = family[experiment.parent]
    return False


def write(path, text):
    """Whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_bytes(text.encode())
        shutil.copymode(path, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


# ---------------------------------------------------------------- plot


def percent(text):
    """83.6 from '83.6 %', 64.3 from '643/1000 easy puzzles'; None where the log has no figure."""
    match = re.match(r"~?(\d+(?:\.\d+)?)\s*%", text) or re.match(r"(\d+)\s*/\s*(\d+)", text)
    if not match:
        return None
    return float(match[1]) if match.lastindex == 1 else 100 * int(match[1]) / int(match[2])


def test_set(source):
    """What Config's `edges` say: the figure's test set."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == "edges" and node.value:
            return ast.unparse(node.value)
    return ""


def plot(output, root=ROOT):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    family = find(root)
    rows = walk(family)
    height = {experiment.path: -i for i, (_, experiment) in enumerate(rows)}
    deepest = max(depth for depth, _ in rows)
    figure, (names, figures) = plt.subplots(
        1, 2, sharey=True, figsize=(14, 1.6 + 0.27 * len(rows)), width_ratios=(1, 0.9), layout="constrained"
    )
    marks = {}
    for depth, experiment in rows:
        y = height[experiment.path]
        label, colour = TEST_SETS.get(test_set(experiment.source), ("other puzzles", "tab:gray"))
        if experiment.parent:
            top = height[experiment.parent] - 0.35
            names.plot([depth - 0.7, depth - 0.7, depth - 0.15], [top, y, y], color="0.6", lw=1)
        names.text(depth, y, experiment.name, va="center", fontsize=9)
        figures.axhline(y, color="0.93", lw=0.8, zorder=0)
        log, found = percent(experiment.figure), ours(root, experiment.name)
        if log is not None:
            marks[f"the log: {label}"] = figures.plot(log, y, "o", mfc="none", mec=colour, mew=1.5, ms=8, ls="")[0]
        if found and found[0] == "full":
            marks[f"ours: {label}"] = figures.plot(found[1], y, "o", color=colour, ms=4.5, ls="")[0]
        elif found:
            marks[f"ours: {found[0]} preset, generated puzzles"] = figures.plot(
                found[1], y, "D", color="tab:purple", ms=5, ls=""
            )[0]
        for x, text in ((1.03, textwrap.shorten(experiment.figure, 30, placeholder=" …")), (1.48, ours_text(found))):
            figures.text(x, y, text, transform=figures.get_yaxis_transform(), va="center", fontsize=8)
    for x, text in ((1.03, "the log"), (1.48, "ours")):
        figures.text(x, 1, text, transform=figures.get_yaxis_transform(), va="center", fontsize=9, weight="bold")
    names.set(xlim=(-0.3, deepest + 4), ylim=(0.4 - len(rows), 1.4))
    names.axis("off")
    figures.set(xlim=(-2, 102), xlabel="puzzles solved, %")
    figures.tick_params(left=False, labelleft=False)
    figures.spines[["top", "left", "right"]].set_visible(False)
    marks = dict(sorted(marks.items(), reverse=True))
    figure.legend(marks.values(), marks.keys(), loc="outside lower left", ncols=3, fontsize=9, frameon=False)
    temporary = Path(f"{output}.tmp")
    figure.savefig(temporary, dpi=150, format=Path(output).suffix.lstrip(".") or "png")
    os.replace(temporary, output)
    plt.close(figure)


# ---------------------------------------------------------------- command line


def main(argv=None, root=ROOT):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("tree", help="every experiment with its changed lines, the log's figure and ours (results/)")
    one = commands.add_parser("diff", help="what an experiment changes in its parent")
    one.add_argument("experiment")
    down = commands.add_parser(
        "propagate",
        help="carry a correction to all descendants",
        description="After a correction in an experiment's file, merge it into all its descendants (git merge-file). "
        "Title and fields of the docstrings stay each file's own. Conflicts leave markers and end that branch.",
    )
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
        colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        for line in diff(asked.experiment, root):
            print(coloured(line) if colour else line)
    elif asked.command == "propagate":
        return propagate(asked.experiment, root, asked.base, asked.dry_run, asked.force)
    else:
        plot(asked.output, root)
        print(f"wrote {asked.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
