"""The copies do not drift apart: every experiment differs from its parent only where it says so. And the tool."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys

import pytest

import lineage
from tests import drift

BUDGET = 95  # changed lines, docstring aside: exp_trm_nested is a network of its own; more is not one change
FAMILY = lineage.find()
ALL = [pytest.param(experiment, id=experiment.name) for experiment in FAMILY.values()]
COPIES = [pytest.param(experiment, id=experiment.name) for experiment in FAMILY.values() if experiment.parent]


# ---------------------------------------------------------------- the real files


def test_tree_has_no_cycle():
    assert len(lineage.walk(FAMILY)) == len(FAMILY) > 0


@pytest.mark.parametrize("experiment", ALL)
def test_docstring_is_complete(experiment):
    text = lineage.docstring(experiment.source)
    assert text.split("\n")[0].strip()
    for field in lineage.FIELDS:
        assert experiment.fields[field].strip(), f"{experiment.name} has no {field}: in its docstring"
    for command in (f"python {experiment.path.relative_to(lineage.ROOT)}", "modal run"):
        assert command in text, f"{experiment.name}: the docstring does not say `{command}`"


@pytest.mark.parametrize("experiment", COPIES)
def test_parent_exists(experiment):
    assert experiment.parent in FAMILY, f"{experiment.name}: no experiment {experiment.fields['Parent']}"


@pytest.mark.parametrize("experiment", COPIES)
def test_difference_is_one_change(experiment):
    parent = FAMILY[experiment.parent]
    count = lineage.changed_lines(lineage.normalise(parent.source, parent.name), experiment.source)
    assert 0 < count <= BUDGET, f"{count} changed lines; see `python lineage.py diff {experiment.name}`"


@pytest.mark.parametrize("experiment", COPIES)
def test_every_difference_is_marked(experiment):
    wrong = drift.differences(FAMILY[experiment.parent], experiment)
    assert not wrong, "\n" + "\n".join(wrong)


@pytest.mark.parametrize(
    "old, new",
    [
        ("        loss.backward()", "        (2 * loss).backward()"),
        ("            optimizer.step()\n", ""),
        ("            optimizer.zero_grad()\n", "            optimizer.zero_grad()\n            optimizer.step()\n"),
        ("    weight_decay: float = 0.01", "    weight_decay: float = 0.0"),
        ("        return logits, (h, ", "        return logits, (2 * h, "),
    ],
)
def test_a_mistake_in_a_real_file_is_found(old, new):
    experiment = lineage.pick(FAMILY, "exp_warmup")
    assert experiment.source.count(old) == 1
    mistaken = dataclasses.replace(experiment, source=experiment.source.replace(old, new))
    assert len(drift.differences(FAMILY[experiment.parent], mistaken)) == 1


# ---------------------------------------------------------------- the comparison, on a small pair

OLD = '''"""Title."""

import math


class Config:
    width: int = 8  # narrow
    rho: float = 0.1
    phases: tuple = (
        (1, 2),
        (3, 4),
    )


class Model:
    def start(self, x):
        """The state."""
        return x * 2  # changed: twice

    def iterate(self, h):
        h = self.mix(h)
        for layer in self.layers:
            h = layer(h)
        return h


def climb(model):
    model.up()


def train(config):
    model = Model()
    loss = model.loss()
    loss.backward()
    return model
'''
INHERITED = OLD.replace("# changed: twice", "# twice (exp_old)")


def wrong(*edits, change="none"):
    """The complaints about a child that is the parent with these edits; line numbers left out."""
    source = INHERITED
    for old, new in edits:
        assert source.count(old) == 1, old
        source = source.replace(old, new)
    parent = lineage.Experiment(lineage.ROOT / "exp_old.py", OLD, {})
    child = lineage.Experiment(lineage.ROOT / "exp_new.py", source, {"Change": change})
    return drift.differences(parent, child)


def test_a_copy_is_free_of_complaints_and_a_mark_must_be_taken_over_as_inherited():
    assert wrong() == []
    assert len(wrong(("# twice (exp_old)", "# changed: twice"))) == 1
    assert len(wrong(("# twice (exp_old)", "# twice (exp_other)"))) == 1
    assert len(wrong(("  # twice (exp_old)", ""))) == 1


def test_a_line_that_differs_needs_a_mark_with_a_reason():
    old, new = "    loss.backward()", "    (2 * loss).backward()"
    (complaint,) = wrong((old, new))
    assert complaint.startswith("exp_new.py:34: ")
    assert len(wrong((old, f"{new}  # changed"))) == len(wrong((old, f"{new}  # changed:"))) == 1
    assert wrong((old, f"{new}  # changed: larger steps")) == []
    assert len(wrong((old, f"{new}  # twice"))) == 1
    assert len(wrong(("# narrow", "# wide"))) == 1
    assert wrong(("# narrow", "# changed: also the width of the input")) == []


def test_a_mark_on_a_line_of_the_parent_is_wrong():
    assert len(wrong(("    loss.backward()", "    loss.backward()  # changed: why"))) == 1
    assert len(wrong(("def train(config):", "def train(config):  # changed: why"))) == 1


def test_a_new_def_or_class_is_marked_once_but_a_mark_on_an_old_one_does_not_cover_its_body():
    new = "class Muon:{}\n    def step(self):\n        for p in self:\n            p.go()\n\n\ndef train(config):"
    assert wrong(("def train(config):", new.format("  # changed: an optimiser"))) == []
    assert wrong(("def train(config):", "@decorator\n" + new.format("  # changed: an optimiser"))) == []
    assert len(wrong(("def train(config):", new.format("")))) == 4
    other = "def jump(model):  # changed: not up\n    model.up()  # with another comment than in climb\n"
    assert wrong(("def climb(model):\n    model.up()\n", other)) == []
    body = ("    loss = model.loss()", "    loss = 2 * model.loss()")
    assert any(":33: " in line for line in wrong(("def train(config):", "def train(config, x):  # changed: x"), body))


def test_a_marked_block_covers_its_lines_if_none_is_the_parents():
    loop = ("            h = layer(h)", "            h = h + layer(h)")
    head = ("        for layer in self.layers:", "        for layer in self.layers[1:]:  # changed: not the first")
    assert wrong(head, loop) == []
    assert wrong(head) == []
    two = ("            h = layer(h)", "            h = layer(h)\n            h = h * 2")
    assert len(wrong(head, two)) == 1
    new = "    if config.x:{}\n        loss = loss * 2\n    else:\n        loss = loss * 3\n    loss.backward()"
    assert wrong(("    loss.backward()", new.format("  # changed: scaled"))) == []
    assert len(wrong(("    loss.backward()", new.format("")))) == 4


def test_a_statement_of_several_lines_is_marked_on_its_first():
    row = ("        (3, 4),", "        (5, 6),")
    assert wrong(row, ("tuple = (\n", "tuple = (  # changed: later\n")) == []
    assert len(wrong(row)) == 1
    assert len(wrong(("tuple = (\n", "tuple = (  # changed: later\n"))) == 1
    text = ('"""The state."""', '"""The state,\n        doubled."""{}')
    assert wrong((text[0], text[1].format("  # changed: said"))) == []
    assert len(wrong((text[0], text[1].format("")))) == 2


def test_lines_may_be_missing_beside_a_mark_only():
    gone = ("        h = self.mix(h)\n", "")
    assert len(wrong(gone)) == 1
    assert wrong(("        h = self.mix(h)\n", "        # changed: nothing to mix\n")) == []
    assert wrong(gone, ("def iterate(self, h):", "def iterate(self, h):  # changed: nothing to mix")) == []
    loop = ("        for layer in self.layers:", "        for layer in self.layers[1:]:  # changed: not the first")
    assert wrong(gone, loop) == []
    assert wrong(("import math\n", "")) == []


def test_a_def_class_or_field_that_is_gone_must_be_named():
    climb, rho = ("def climb(model):\n    model.up()\n", ""), ("    rho: float = 0.1\n", "")
    for gone, name in ((climb, "climb"), (rho, "rho")):
        assert len(wrong(gone)) == 1
        assert wrong(gone, change=f"{name} is gone.") == []
    assert wrong(climb, rho, change="no SAM: climb and rho are gone.") == []
    assert len(wrong(climb, ("    model = Model()\n", ""), change="climb is gone.")) == 1
    assert len(wrong(climb, rho, change="climb is gone.")) == 1


def test_a_name_in_change_must_have_changed():
    edit = ("    loss.backward()", "    loss.backward(2)  # changed: why")
    for change in ("train() takes", "in train", "train", "none, and train takes"):
        assert wrong(edit, change=change) == []
    for change in ("Model.iterate reads", "climb() is", "width 9", "train(), `rho`", "no change (iterate)", "Model"):
        assert len(wrong(edit, change=change)) == 1, change
    assert wrong(edit, change="train() takes steps of any width, up a climb") == []  # ordinary words
    assert wrong(("width: int = 8  # narrow", "width: int = 9  # changed: wide"), change="width 9") == []


def test_marks_as_a_child_inherits_them():
    text = "a = 1  # changed: why so\nb = 2  # changed\nc = 3  # the order is changed: no\nd = 4  # why (exp_a)\n"
    inherited = lineage.normalise(text, "exp_b")
    assert inherited.splitlines()[:2] == ["a = 1  # why so (exp_b)", "b = 2  # (exp_b)"]
    assert inherited.splitlines()[2:] == text.splitlines()[2:]
    assert lineage.normalise(inherited, "exp_c") == inherited


# ---------------------------------------------------------------- the tool, on three small files

COMMIT = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", "commit"]
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
    .replace("rate = 1", "rate = 2  # changed: twice")
    .replace("64.3 %", "10/1000 of all")
)
GRANDCHILD = (
    CHILD.replace("exp_a.py", "exp_b.py")
    .replace("exp_b.py ", "exp_c.py ")
    .replace("# changed: twice", "# twice (exp_b)")
    .replace("width = 8", "width = 9  # changed: wider")
)


@pytest.fixture
def family(tmp_path):
    for name, text in (("exp_a", PARENT), ("exp_b", CHILD), ("exp_c", GRANDCHILD), ("exp_helper", '"""Not one."""\n')):
        (tmp_path / f"{name}.py").write_text(text)
    for command in (["git", "init", "-q"], ["git", "add", "."], [*COMMIT, "-qm", "start"]):
        subprocess.run(command, cwd=tmp_path, check=True)
    return tmp_path


def texts(root):
    return [(root / f"exp_{name}.py").read_text() for name in "abc"]


def correct(root, name, old, new):
    path = root / f"{name}.py"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def keep(root, run, preset="full", **summary):
    """A kept run of exp_b."""
    folder = root / "results" / "exp_b" / run
    folder.mkdir(parents=True)
    config = {"preset": preset, "seed": int(run[-1]) if run[-1].isdigit() else 0, "iterations": 2}
    (folder / "config.json").write_text(json.dumps(config))
    summary = {"seconds": 9.0, "hardware": "a laptop; torch", "command": "python exp_b.py"} | summary
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder / "summary.json"


def cells_of(root):
    rows = [line.split("  ") for line in lineage.tree(root).splitlines()]
    return [[cell.strip() for cell in row if cell.strip()] for row in rows]


def test_tree(family):
    keep(family, "full-seed0", solved=0.8)
    keep(family, "full-seed1", solved=0.82)
    keep(family, "mini-seed0", "mini", solved=0.1)
    keep(family, "a-smaller-rate", solved=0.2)  # a run under a name of its own differs from its experiment
    assert cells_of(family) == [
        ["experiment", "lines", "the log", "ours"],
        ["exp_a", "-", "64.3 %", "not run"],
        ["└ exp_b", "1", "10/1000 of all", "81.0 % (mean of 2)"],
        ["└ exp_c", "1", "10/1000 of all", "not run"],
    ]
    assert lineage.find(family)[family / "exp_a.py"].fields["Log"] == "64.3 %, noise\nand a second line."


def test_tree_tells_that_a_run_diverged(family):
    keep(family, "mini-seed0", "mini", solved=None, diverged_at=310)
    assert cells_of(family)[2][-1] == "- (mini, diverged at step 310)"
    keep(family, "mini-seed1", "mini", solved=0.5)
    assert cells_of(family)[2][-1] == "50.0 % (mini, diverged at step 310)"


@pytest.mark.parametrize("text", ['{"solved"', "", "[]", '{"solved": 0.5}', "null", "much"])
def test_tree_names_a_broken_summary(family, text):
    path = keep(family, "full-seed0", solved={"null": None}.get(text, text))
    if text not in ("null", "much"):
        path.write_text(text)
    with pytest.raises(SystemExit, match=r"exp_b.full-seed0.summary\.json"):
        lineage.tree(family)


def test_a_closed_pipe_ends_without_a_traceback(family):
    words = f"for i in 1 2 3; do {sys.executable} {lineage.__file__} tree; done | true"
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    for environment in (buffered, buffered | {"PYTHONUNBUFFERED": "1"}):
        done = subprocess.run(["bash", "-c", words], capture_output=True, text=True, env=environment)
        assert done.stderr == ""


def test_ctrl_c_ends_without_a_traceback():
    code = "import lineage, signal; lineage.run_command(lambda: signal.raise_signal(signal.SIGINT))"
    done = subprocess.run([sys.executable, "-c", code], cwd=lineage.ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.parametrize("output", [".", "", "here.png", "x.foo", "no/x.png"])
def test_a_picture_that_cannot_be_written_is_one_line(family, monkeypatch, output):
    monkeypatch.chdir(family)
    (family / "here.png").mkdir()
    before = sorted(family.rglob("*"))
    with pytest.raises(SystemExit) as ended:
        lineage.run_command(lambda: lineage.main(["plot", "--output", output], family))
    assert len(ended.value.code.splitlines()) == 1 and (output or ".") in ended.value.code
    assert sorted(family.rglob("*")) == before


def test_diff(family, capsys):
    assert lineage.main(["diff", "exp_b.py"], family) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[:2] == ["--- exp_a.py", "+++ exp_b.py"]
    assert "-rate = 1" in shown and "+rate = 2  # changed: twice" in shown
    lineage.main(["diff", "exp_c"], family)
    code = [line for line in capsys.readouterr().out.splitlines() if re.match(r"[-+]\w+ = ", line)]
    assert code == ["-width = 8", "+width = 9  # changed: wider"]  # what exp_b changed is no difference
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


def test_propagate_carries_a_mark_as_inherited(family):
    correct(family, "exp_b", "rate = 2  # changed: twice", "rate = 4  # changed: four times")
    correct(family, "exp_b", "def test():", "def test():  # changed: why")
    assert lineage.main(["propagate", "exp_b"], family) == 0
    expected = GRANDCHILD.replace("rate = 2  # twice (exp_b)", "rate = 4  # four times (exp_b)")
    assert texts(family)[2] == expected.replace("def test():", "def test():  # why (exp_b)")


def test_propagate_reports_conflicts(family, capsys):
    correct(family, "exp_a", "rate = 1", "rate = 3")
    assert lineage.main(["propagate", "exp_a"], family) == 1
    _, child, grandchild = texts(family)
    assert "<<<<<<< exp_b.py\nrate = 2" in child and "rate = 3\n>>>>>>> exp_a.py after" in child
    assert grandchild == GRANDCHILD  # the branch ends at the conflict
    assert "resolve the <<<<<<< in exp_b.py, then python lineage.py propagate exp_b (its 1" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"exp_b\.py"):
        lineage.main(["propagate", "exp_b"], family)
    resolved = re.sub(r"<<<<<<<.*?>>>>>>>[^\n]*", "rate = 6  # changed: twice", child, flags=re.DOTALL)
    (family / "exp_b.py").write_text(resolved)
    assert lineage.main(["propagate", "exp_b"], family) == 0
    assert texts(family)[2] == GRANDCHILD.replace("rate = 2", "rate = 6")


def test_propagate_a_deletion_against_a_modification(family):
    """The conflict shows what stood there before, so that neither side looks like an addition."""
    correct(family, "exp_a", "rate = 1\n", "")
    assert lineage.main(["propagate", "exp_a"], family) == 1
    ours, before, after = re.search(
        r"<<<<<<< exp_b\.py\n(.*?)\|{7} exp_a\.py before\n(.*?)=======\n(.*?)>>>>>>> exp_a", texts(family)[1], re.DOTALL
    ).groups()
    assert (ours.strip(), before.strip(), after.strip()) == ("rate = 2  # changed: twice", "rate = 1", "")


def test_propagate_a_modification_against_a_deletion(family):
    correct(family, "exp_c", 'def test():\n    return "test"\n', "")
    subprocess.run([*COMMIT, "-qam", "gone"], cwd=family, check=True)
    correct(family, "exp_a", 'return "test"', 'return "tested"')
    assert lineage.main(["propagate", "exp_a"], family) == 1
    _, child, grandchild = texts(family)
    assert child == CHILD.replace('"test"', '"tested"')
    ours, before, after = re.search(
        r"<<<<<<< exp_c\.py\n(.*?)\|{7} exp_b\.py before\n(.*?)=======\n(.*?)>>>>>>> exp_b", grandchild, re.DOTALL
    ).groups()
    assert "test" not in ours and '"test"' in before and '"tested"' in after


def test_propagate_a_deletion_of_what_the_child_inherits(family):
    """Also of a marked line: the child has it in another form, which is no modification of its own."""
    correct(family, "exp_b", "rate = 2  # changed: twice\n", "")
    assert lineage.main(["propagate", "exp_b"], family) == 0
    assert texts(family)[2] == GRANDCHILD.replace("rate = 2  # twice (exp_b)\n", "")


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
    subprocess.run([*COMMIT, "-qam", "correct"], cwd=family, check=True)
    with pytest.raises(SystemExit, match="--base"):
        lineage.main(["propagate", "exp_a"], family)
    assert lineage.main(["propagate", "exp_a", "--base", "HEAD~1"], family) == 0
    assert texts(family)[1:] == [text.replace('"test"', '"tested"') for text in (CHILD, GRANDCHILD)]


def test_propagate_keeps_the_mode_of_a_file(family):
    (family / "exp_b.py").chmod(0o755)
    correct(family, "exp_a", 'return "test"', 'return "tested"')
    assert lineage.main(["propagate", "exp_a"], family) == 0
    assert (family / "exp_b.py").stat().st_mode & 0o777 == 0o755


def test_plot(family, tmp_path):
    keep(family, "mini-seed0", "mini", solved=0.5)
    lineage.main(["plot", "--output", str(tmp_path / "tree.png")], family)
    assert (tmp_path / "tree.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "text, value", [("83.6 %", 83.6), ("~14 %", 14.0), ("643/1000 easy puzzles", 64.3), ("diverges", None), ("0", None)]
)
def test_percent(text, value):
    assert lineage.log_percent(text) == value


# ---------------------------------------------------------------- a folder of experiments


@pytest.fixture
def nested(family):
    """The family with a grandchild that stands in pos_embedding/."""
    (family / "pos_embedding").mkdir()
    (family / "exp_c.py").rename(family / "pos_embedding" / "exp_c.py")
    correct(family, "pos_embedding/exp_c", "python exp_c.py", "python pos_embedding/exp_c.py")
    subprocess.run(["git", "add", "-A"], cwd=family, check=True)
    subprocess.run([*COMMIT, "-qam", "moved"], cwd=family, check=True)
    return family


def test_a_file_in_the_folder_descends_from_one_in_the_root(nested, capsys):
    assert cells_of(nested)[3][:2] == ["└ exp_c", "1"]
    assert lineage.main(["diff", "pos_embedding/exp_c.py"], nested) == 0
    assert capsys.readouterr().out.startswith("--- exp_b.py\n+++ pos_embedding/exp_c.py\n")
    correct(nested, "exp_a", 'return "test"', 'return "tested"')
    correct(nested, "exp_a", "python exp_a.py            runs", "python exp_a.py            runs in minutes")
    assert lineage.main(["propagate", "exp_a"], nested) == 0
    text = (nested / "pos_embedding/exp_c.py").read_text()
    assert 'return "tested"' in text and "python pos_embedding/exp_c.py            runs in minutes" in text


def test_names_are_unique(nested):
    shutil.copy(nested / "pos_embedding" / "exp_c.py", nested)
    with pytest.raises(SystemExit, match="the same name"):
        lineage.find(nested)


ENVIRONMENT = """
import common, lineage, pathlib
here = pathlib.Path.cwd()
assert pathlib.Path(common.__file__) == here / "common.py", common.__file__
module = lineage.module("exp_pos")
assert module.__name__ == "pos_embedding.exp_pos" and module.common is common
assert lineage.module("exp_cosine_no_sam").common is common
"""


def test_an_experiment_in_the_folder_runs_like_any_other(tmp_path, cache):
    """As a script, under torchrun and when it is imported, `common` is the root's."""
    (tmp_path / "pos_embedding").mkdir()
    for name in ("common.py", "lineage.py", "exp_cosine_no_sam.py", "pos_embedding/common.py"):
        shutil.copy(lineage.ROOT / name, tmp_path / name)
    for name in ("data", "plumbing"):  # with __pycache__, where numba keeps what it has compiled
        shutil.copytree(lineage.ROOT / name, tmp_path / name)
    shutil.copy(lineage.ROOT / "exp_cosine_no_sam.py", tmp_path / "pos_embedding" / "exp_pos.py")
    script = ["exp_pos.py", "--preset", "smoke", "--steps", "1"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=1", *script]  # python exp_pos.py ...
    for folder, arguments in (("pos_embedding", torchrun), (".", ["-c", ENVIRONMENT])):
        done = subprocess.run([sys.executable, *arguments], cwd=tmp_path / folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "pos_embedding/runs/exp_pos/smoke-seed0/summary.json").exists()
