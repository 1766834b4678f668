"""Nine million Sudoku puzzles without ratings, from Kaggle: fetched once, checked, and kept in binary form.

python data/kaggle_9m.py
python data/kaggle_9m.py --csv sudoku.csv    # downloaded by hand
"""

import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data import kaggle_3m

DATA_SET = "rohanrao/sudoku"
FILE = "sudoku.csv"
ROWS = 9_000_000


def load(csv=None):
    """All its puzzles in the file's order, rated 0; `csv` replaces the download."""
    return kaggle_3m.load_from_kaggle("kaggle_9m", DATA_SET, FILE, ROWS, csv)


if __name__ == "__main__":
    kaggle_3m.main(description=__doc__, load=load)
