"""The root's common: `python pos_embedding/exp_x.py` has this folder on its path, and not the root."""

import importlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
del sys.modules[__name__]
sys.modules[__name__] = importlib.import_module("common")  # a module may put another one in its place
