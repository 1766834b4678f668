"""Compares an experiment with its parent line by line. Every difference must be explained by a mark, `# changed: why`:

- A line whose code is not the parent's carries a mark, or stands in a marked block.
- A marked block is a new def or class (a name that the parent does not have there), a for, while, with, if or try
  without any line of the parent, or a simple statement of several lines of which one is new. The mark is on its first
  line; a string of several lines carries it on its last.
- Lines of the parent may be missing next to a mark; if nothing there has changed, mark the line before or after them,
  or put a comment line `# changed: why` in their place. A def, class or Config field that is gone altogether needs no
  mark if `Change:` names it. Imports may go.
- On a line with the parent's code, a mark may also replace the parent's comment. Any other mark there is wrong, and
  so is another comment without a mark.
- A name in `Change:` must have changed. A name is what begins a clause there (after the start, a comma, colon,
  semicolon or opening bracket, or "and") or is written as train() or Model.iterate, if it is a def, class, method or
  Config field.

The module's docstring and blank lines do not count, and the parent's marks count as `# why (parent)`.
"""

import ast
import difflib
import io
import re
import tokenize

import lineage

MARK = re.compile(r"# changed(?::\s*(.*?))?\s*$")
NAMES = re.compile(r"(?:^|[,;:(]|\band\b)\s*`?([A-Za-z_]\w*(?:\.\w+)*)|([\w.]+)\(\)|(\w+\.\w+)")


class Text:
    """A source with its lines' code, comments aside, and its names."""

    def __init__(self, source):
        tokens = tokenize.generate_tokens(io.StringIO(source).readline)
        comments = {token.start[0]: token.start[1] for token in tokens if token.type == tokenize.COMMENT}
        self.tree, self.lines, self.code = ast.parse(source), {}, {}
        end = lineage.span(source)[1]
        for number, line in enumerate(source.splitlines(), 1):
            if number > end and line.strip():
                self.lines[number] = line
                self.code[number] = line[: comments.get(number, len(line))].rstrip()
                if not self.code[number]:  # a comment line: its text, less mark and origin
                    self.code[number] = re.sub(r"^(\s*# )(?:changed: *)?(.*?)(?: \(\w+\))?$", r"\1\2", line)
        self.marks = {n: MARK.search(line)[1] or "" for n, line in self.lines.items() if MARK.search(line)}
        self.names = {}
        self.add_names(self.tree, "")

    def add_names(self, node, prefix):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.ClassDef)):
                self.names[prefix + child.name] = child
                self.add_names(child, f"{prefix}{child.name}.")
            elif isinstance(child, ast.AnnAssign) and prefix == "Config.":
                self.names[prefix + child.target.id] = child
            else:
                self.add_names(child, prefix)

    def numbers(self, node):
        """The lines of a node, decorators included and blank lines left out."""
        start = min(part.lineno for part in [node, *getattr(node, "decorator_list", [])])
        return [number for number in range(start, node.end_lineno + 1) if number in self.lines]

    def code_of(self, name):
        return [self.code[number] for number in self.numbers(self.names[name])] if name in self.names else None


def claimed(change, *texts):
    """{name in `Change:`: the qualified names that it stands for}"""
    known = {name for text in texts for name in text.names}
    words = {next(filter(None, match.groups())) for match in NAMES.finditer(change)}
    found = {word: {name for name in known if name == word or name.endswith(f".{word}")} for word in words}
    return {word: names for word, names in found.items() if names}


def covered_lines(old, new, inserted):
    """The lines of all marked blocks; `inserted` are the lines whose code is not the parent's."""
    covered = set()
    for name, node in new.names.items():
        head = [number for number in new.numbers(node) if number <= node.lineno]
        if name not in old.names and not isinstance(node, ast.AnnAssign) and any(n in new.marks for n in head):
            covered |= set(new.numbers(node))
    for node in ast.walk(new.tree):
        if isinstance(node, ast.stmt) and not isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            lines = new.numbers(node)
            if any(isinstance(part, (ast.stmt, ast.match_case)) for part in ast.iter_child_nodes(node)):
                is_marked, is_new = lines[0] in new.marks, all(number in inserted for number in lines)
            else:
                is_marked = any(number in new.marks for number in (lines[:1] + lines[-1:]))
                is_new = any(number in inserted for number in lines)
            if is_marked and is_new:
                covered |= set(lines)
    return covered


def differences(parent, child):
    """What is wrong with the child's differences to its parent, one line of text each."""
    old, new = Text(lineage.normalise(parent.source, parent.name)), Text(child.source)
    names = claimed(child.fields["Change"], old, new)
    gone = {n for found in names.values() for name in found - new.names.keys() for n in old.numbers(old.names[name])}
    imports = {
        n for node in ast.walk(old.tree) if isinstance(node, (ast.Import, ast.ImportFrom)) for n in old.numbers(node)
    }
    added = covered_lines(old, new, ())  # new defs and classes match no line of the parent
    olds, news = [n for n in old.lines if n not in gone], list(new.lines)
    codes = [old.code[n] for n in olds], [n if n in added else new.code[n] for n in news]
    steps = difflib.SequenceMatcher(None, *codes, autojunk=False).get_opcodes()
    inserted = {n for tag, _, _, j1, j2 in steps if tag != "equal" for n in news[j1:j2]}
    covered = covered_lines(old, new, inserted)

    wrong, beside = [], set()
    for tag, i1, i2, j1, j2 in steps:
        missing = [n for n in olds[i1:i2] if n not in imports]
        if tag == "delete" and missing:
            around = news[max(0, j1 - 1) : j2 + 1]
            beside |= set(around)
            if not any(n in new.marks or n in covered for n in around):
                lost = f"missing here: {len(missing)} lines of {parent.name} from `{old.lines[missing[0]].strip()}` on"
                wrong.append((around[0], f"{lost}; put them back, or add `# changed: why` to this line or the next"))
    for tag, i1, i2, j1, j2 in steps:
        for i, n in zip(olds[i1:i2], news[j1:j2]) if tag == "equal" else ():
            comment = re.sub(r"^\s*# ?| \(\w+\)$", "", old.lines[i].removeprefix(old.code[i]))
            if n in new.marks and n not in covered | beside and comment in ("", new.marks[n]):
                wrong.append((n, f"is marked, but does not differ from {parent.name}; write: {old.lines[i].strip()}"))
            elif n not in new.marks and old.lines[i] != new.lines[n]:
                wrong.append((n, f"only the comment differs from {parent.name}; write: {old.lines[i].strip()}"))
    wrong += [(n, "the mark gives no reason; write `# changed: why`") for n, why in new.marks.items() if not why]
    for n in sorted(inserted - covered - new.marks.keys()):
        wrong.append((n, f"differs from {parent.name} without a mark; add `# changed: why`, or take its version over"))
    for word, found in names.items():
        if all(old.code_of(name) == new.code_of(name) for name in found):
            wrong.append((1, f"`Change:` names {word}, which is as in {parent.name}; reword it, or change {word}"))
    return [f"{child.path.name}:{number}: {text}" for number, text in sorted(wrong)]
