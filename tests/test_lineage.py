"""The copies do not drift apart: every experiment differs from its parent only where it says so. And the tool."""

import ast
import re
import subprocess

import pytest

import lineage

BUDGET = 60  # changed lines, docstring aside: more than that is not one change
FAMILY = lineage.find()
ALL = [pytest.param(experiment, id=experiment.name) for experiment in FAMILY.values()]
COPIES = [pytest.param(experiment, id=experiment.name) for experiment in FAMILY.values() if experiment.parent]


# ---------------------------------------------------------------- the real files


def units(source):
    """{name: (lines, what it means)} of a file: functions, methods, fields of a class, other statements.

    Comments, docstrings and imports do not count.
    """
    found, lines = {}, source.splitlines()

    def add(name, node):
        start = min(part.lineno for part in [node, *getattr(node, "decorator_list", [])])
        text = lines[start - 1 : node.end_lineno]
        if isinstance(node, ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
        found[name] = (text, ast.dump(node))

    for node in ast.parse(source).body[1:]:
        if isinstance(node, ast.ClassDef):
            for part in node.body:
                if isinstance(part, ast.FunctionDef):
                    add(f"{node.name}.{part.name}", part)
                elif isinstance(part, ast.AnnAssign):
                    add(f"{node.name}.{part.target.id}", part)
            node.body = []
            add(node.name, node)  # its name, bases and decorators
        elif isinstance(node, ast.FunctionDef):
            add(node.name, node)
        elif not isinstance(node, (ast.Import, ast.ImportFrom)):
            add(ast.unparse(node).split("\n")[0], node)
    return found


def undeclared(old, new, change):
    """The units that differ though neither `Change:` nor a `# changed` line of this very file says so."""
    before, after, known = units(old), units(new), set(old.splitlines())
    drifted = []
    for name in before | after:
        if before.get(name, (0, 0))[1] == after.get(name, (0, 0))[1]:
            continue
        short = name.split(".")[-1]
        named = re.search(rf"(?<!\w){re.escape(short)}(?!\w)", change)
        marked = any("# changed" in line and line not in known for line in after.get(name, ([], ""))[0])
        gone = name not in after and name.startswith("Config.")  # a flag that nothing reads any more
        if not (named or marked or gone):
            drifted.append(name)
    return drifted


def test_names_are_unique_and_the_tree_has_no_cycle():
    names = [experiment.name for experiment in FAMILY.values()]
    assert len(set(names)) == len(names)
    assert len(lineage.walk(FAMILY)) == len(FAMILY) > 0


@pytest.mark.parametrize("experiment", ALL)
def test_docstring_is_complete(experiment):
    text = lineage.docstring(experiment.source)
    assert text.split("\n")[0].strip()
    for field in lineage.FIELDS:
        assert experiment.fields.get(field, "").strip(), f"{experiment.name} has no {field}: in its docstring"
    for command in (f"python {experiment.path.relative_to(lineage.ROOT)}", "modal run"):
        assert command in text, f"{experiment.name}: the docstring does not say `{command}`"


@pytest.mark.parametrize("experiment", COPIES)
def test_parent_exists(experiment):
    assert experiment.parent in FAMILY, f"{experiment.name}: no experiment {experiment.fields['Parent']}"


@pytest.mark.parametrize("experiment", COPIES)
def test_difference_is_one_change(experiment):
    parent = FAMILY[experiment.parent]
    count = lineage.changed_lines(parent.source, experiment.source)
    assert 0 < count <= BUDGET, f"{count} changed lines; see `python lineage.py diff {experiment.name}`"
    drifted = undeclared(parent.source, experiment.source, experiment.fields["Change"])
    assert not drifted, (
        f"{experiment.name} differs from {parent.name} in {', '.join(drifted)}: name it in Change:, mark the line "
        f"`# changed: why ({experiment.name})`, or carry the parent's version over"
    )


@pytest.mark.parametrize("experiment", COPIES)
def test_marks_bear_the_right_name(experiment):
    """A line of one's own that is marked says whose change it is; an inherited one keeps its origin's name."""
    known = set(FAMILY[experiment.parent].source.splitlines())
    for number, line in enumerate(experiment.source.splitlines(), 1):
        mark = re.search(r"# changed.*\((\w+)\)$", line)
        if mark and line not in known:
            assert mark[1] == experiment.name, f"{experiment.path.name}:{number} says ({mark[1]})"


def test_undeclared_finds_drift():
    old = '"""d"""\nclass M:\n    def f(self):\n        """Say."""\n        return 1\n\ndef g():\n    return 1\n'
    assert undeclared(old, old.replace("Say.", "Tell."), "none") == []
    assert undeclared(old, old.replace("        return 1", "        return 2"), "g") == ["M.f"]
    assert undeclared(old, old.replace("        return 1", "        return 2  # changed: x"), "none") == []
    assert undeclared(old, old.replace("        return 1", "        return 2"), "M.f counts further") == []
    inherited = old.replace("        return 1", "        return 1  # changed: earlier")
    assert undeclared(inherited, inherited + "\ndef h():\n    pass\n", "none") == ["h"]
    assert undeclared(inherited, inherited.replace("1  #", "1 if self else 2  #"), "none") == []
    assert undeclared(inherited, "\n".join(inherited.split("\n")[:4]) + "\n        return 3\n", "g") == ["M.f"]


# ---------------------------------------------------------------- the tool, on three small files

PARENT = '''"""Parent.

Parent: none
Change: none.
Hypothesis: it learns.
Log: 64.3 %, noise
and a second line.

python exp_a.py            runs
"""

rate = 1

width = 8


def train():
    return "train"


def test():
    return "test"
'''
CHILD = (
    PARENT.replace("Parent: none", "Parent: exp_a.py")
    .replace("Parent.", "Child.")
    .replace("exp_a.py ", "exp_b.py ")
    .replace("rate = 1", "rate = 2  # changed: twice (exp_b)")
    .replace("64.3 %", "10/1000 of all")
)
GRANDCHILD = CHILD.replace("exp_a.py", "exp_b.py").replace("exp_b.py ", "exp_c.py ").replace("width = 8", "width = 9")


@pytest.fixture
def family(tmp_path):
    for name, text in (("exp_a", PARENT), ("exp_b", CHILD), ("exp_c", GRANDCHILD), ("exp_helper", '"""Not one."""\n')):
        (tmp_path / f"{name}.py").write_text(text)
    for command in ("init -q", "add .", "-c user.name=t -c user.email=t@example.org commit -q -m start"):
        subprocess.run(["git", *command.split()], cwd=tmp_path, check=True)
    return tmp_path


def texts(root):
    return [(root / f"exp_{name}.py").read_text() for name in "abc"]


def correct(root, name, old, new):
    path = root / f"{name}.py"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def test_tree(family):
    for run, summary in (
        ("full-seed0", '{"solved": 0.8}'),
        ("full-seed1", '{"solved": 0.82}'),
        ("mini-seed0", '{"solved": 0.1, "preset": "mini"}'),
        ("half-the-rate", '{"solved": 0.2}'),  # a run under a name of its own differs from its experiment
    ):
        folder = family / "results" / "exp_b" / run
        folder.mkdir(parents=True)
        (folder / "summary.json").write_text(summary)
    rows = [line.split("  ") for line in lineage.tree(family).splitlines()]
    rows = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    assert rows == [
        ["experiment", "lines", "the log", "ours"],
        ["exp_a", "-", "64.3 %", "not run"],
        ["└ exp_b", "1", "10/1000 of all", "81.0 % (mean of 2)"],
        ["└ exp_c", "1", "10/1000 of all", "not run"],
    ]
    assert lineage.find(family)[family / "exp_a.py"].fields["Log"] == "64.3 %, noise\nand a second line."


def test_tree_names_a_broken_summary(family):
    folder = family / "results" / "exp_b" / "s0"
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text('{"solved"')
    with pytest.raises(SystemExit, match=r"exp_b.s0.summary\.json"):
        lineage.tree(family)


def test_diff(family, capsys):
    assert lineage.main(["diff", "exp_b.py"], family) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[:2] == ["--- exp_a.py", "+++ exp_b.py"]
    assert "-rate = 1" in shown and "+rate = 2  # changed: twice (exp_b)" in shown
    with pytest.raises(SystemExit, match="do you mean exp_"):
        lineage.main(["diff", "exp_bb"], family)


def test_parents_that_are_missing_or_in_a_circle(family):
    correct(family, "exp_a", "Parent: none", "Parent: exp_c.py")
    with pytest.raises(SystemExit, match=r"circle: exp_a\.py, exp_b\.py, exp_c\.py"):
        lineage.tree(family)
    correct(family, "exp_a", "Parent: exp_c.py", "Parent: exp_z.py")
    with pytest.raises(SystemExit, match=r"exp_a\.py: its parent exp_z\.py"):
        lineage.tree(family)


def test_propagate_carries_a_correction_down(family, capsys):
    correct(family, "exp_a", 'return "test"', 'return "tested"')
    correct(family, "exp_a", "exp_a.py            runs", "exp_a.py            runs in minutes")
    correct(family, "exp_a", "Log: 64.3 %", "Log: 65.0 %")
    before = texts(family)
    assert lineage.main(["propagate", "exp_a", "--dry-run"], family) == 0
    assert texts(family) == before
    assert lineage.main(["propagate", "exp_a"], family) == 0
    _, child, grandchild = texts(family)
    new = [('return "test"', 'return "tested"'), ("runs", "runs in minutes")]
    for text, old in ((child, CHILD), (grandchild, GRANDCHILD)):
        for a, b in new:
            old = old.replace(a, b)
        assert text == old  # the correction, their own change, their own figure
    assert "2 of 2 descendants changed" in capsys.readouterr().out
    assert not list(family.glob(".*.tmp"))


def test_propagate_goes_on_with_a_childs_own_version(family):
    """What the merge made of the child, not the parent's text, is what its children get."""
    correct(family, "exp_b", 'return "train"', 'return "train" * 2')
    assert lineage.main(["propagate", "exp_b"], family) == 0
    assert texts(family) == [
        PARENT,
        CHILD.replace('"train"', '"train" * 2'),
        GRANDCHILD.replace('"train"', '"train" * 2'),
    ]


def test_propagate_reports_conflicts(family, capsys):
    correct(family, "exp_a", "rate = 1", "rate = 3")
    assert lineage.main(["propagate", "exp_a"], family) == 1
    _, child, grandchild = texts(family)
    assert "<<<<<<< exp_b.py\nrate = 2" in child and "rate = 3\n>>>>>>> exp_a.py after" in child
    assert grandchild == GRANDCHILD  # the branch ends at the conflict
    assert "resolve the <<<<<<< in exp_b.py, then python lineage.py propagate exp_b (its 1" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"exp_b\.py"):
        lineage.main(["propagate", "exp_b"], family)
    resolved = re.sub(r"<<<<<<<.*?>>>>>>>[^\n]*", "rate = 6  # changed: twice (exp_b)", child, flags=re.DOTALL)
    (family / "exp_b.py").write_text(resolved)
    assert lineage.main(["propagate", "exp_b"], family) == 0
    assert texts(family)[2] == GRANDCHILD.replace("rate = 2", "rate = 6")


def test_propagate_refuses_to_mix_with_uncommitted_work(family):
    correct(family, "exp_a", 'return "test"', 'return "tested"')
    correct(family, "exp_c", "width = 9", "width = 10")
    before = texts(family)
    with pytest.raises(SystemExit, match=r"not committed: exp_c\.py"):
        lineage.main(["propagate", "exp_a"], family)
    assert texts(family) == before
    assert lineage.main(["propagate", "exp_a", "--force"], family) == 0
    assert texts(family)[2] == before[2].replace('"test"', '"tested"')


def test_propagate_after_a_commit(family):
    correct(family, "exp_a", 'return "test"', 'return "tested"')
    subprocess.run(
        ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qam", "correct"],
        cwd=family,
        check=True,
    )
    with pytest.raises(SystemExit, match="--base"):
        lineage.main(["propagate", "exp_a"], family)
    assert lineage.main(["propagate", "exp_a", "--base", "HEAD~1"], family) == 0
    assert texts(family)[1:] == [text.replace('"test"', '"tested"') for text in (CHILD, GRANDCHILD)]


def test_plot(family, tmp_path):
    lineage.main(["plot", "--output", str(tmp_path / "tree.png")], family)
    assert (tmp_path / "tree.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "text, value", [("83.6 %", 83.6), ("~14 %", 14.0), ("643/1000 easy puzzles", 64.3), ("diverges", None), ("0", None)]
)
def test_percent(text, value):
    assert lineage.percent(text) == value
