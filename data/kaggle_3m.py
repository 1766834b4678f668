"""Three million Sudoku puzzles with ratings, from Kaggle: fetched once, checked, and kept in binary form.

python data/kaggle_3m.py
python data/kaggle_3m.py --csv sudoku-3m.csv    # downloaded by hand
"""

import argparse
import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data import rows, store
from plumbing import disk

DATA_SET = "radcliffe/3-million-sudoku-puzzles-with-ratings"
FILE = "sudoku-3m.csv"
ROWS = 3_000_000


def load(csv=None):
    """All its puzzles in the file's order (data.sources splits them); `csv` replaces the download."""
    return load_from_kaggle("kaggle_3m", DATA_SET, FILE, ROWS, csv)


def load_from_kaggle(name, data_set, file, count, csv=None):
    """The puzzles of a Kaggle data set that is one CSV file of `count` rows; `name` is the name of its script."""
    remedy = (
        "run it again with a network (and, if Kaggle asks for an account, KAGGLE_USERNAME and KAGGLE_KEY), or download "
        f"{file} by hand from https://www.kaggle.com/datasets/{data_set} and run python data/{name}.py --csv PATH; "
        "an experiment also takes --data file.csv or --data generated"
    )

    def download():
        import kagglehub

        return kagglehub.dataset_download(data_set, path=file)

    def make():
        return rows.parse(csv or rows.fetched(f"{data_set}, {file}", download, remedy), count)

    made_by = {"reader": rows.VERSION, "data set": data_set, "file": file, "rows": count}
    path = store.cache_folder() / f"{name.replace('_', '-')}.npy"
    return store.load_or_make(path, made_by, make, again=csv is not None)


def main(argv=None, description=__doc__, load=load):
    parser = argparse.ArgumentParser(description=description.split("\n\n")[0])
    parser.add_argument("--csv", metavar="PATH", help="the data set's file, if it was downloaded by hand")
    try:
        puzzles = load(parser.parse_args(argv).csv)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    disk.say(f"{len(puzzles):,} puzzles, rated {puzzles.rating.min():g} to {puzzles.rating.max():g}")


if __name__ == "__main__":
    main()
