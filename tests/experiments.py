"""The experiment files of the top level, found by their `Parent:` line."""

import ast
import importlib
from pathlib import Path

ROOT = Path(__file__).parent.parent


def names():
    found = []
    for path in sorted(ROOT.glob("*.py")):
        docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
        if "\nParent:" in docstring:
            found.append(path.stem)
    return found


def load(name):
    return importlib.import_module(name)
