"""sudoku-extreme, from Hugging Face: fetched once, checked, and kept in binary form.

    python data/sudoku_extreme.py
    python data/sudoku_extreme.py --train-csv train.csv --test-csv test.csv    # fetched by hand

A training row is left out if its puzzle is in the test file, as it stands or as an equivalent under a symmetry.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

if __package__ in (None, ""):  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data import rows, store

REPOSITORY = "sapientinc/sudoku-extreme"
ROWS = {"train": 3_831_994, "test": 422_786}  # of its two files
PER_BUCKET, NATURAL, SEED = 5_000, 25_000, 0  # of the frozen test sets
REMEDY = (
    "run it again when the network is there, or download train.csv and test.csv by hand from "
    f"https://huggingface.co/datasets/{REPOSITORY}/tree/main and run python data/sudoku_extreme.py "
    "--train-csv PATH --test-csv PATH; an experiment also takes --data file.csv or --data generated"
)


def fetch(name):
    """The path of a file of the data set; a download that was cut off goes on where it stopped."""

    def download():
        from huggingface_hub import hf_hub_download

        return hf_hub_download(repo_id=REPOSITORY, repo_type="dataset", filename=name)

    return rows.fetched(f"{REPOSITORY}, {name}", download, REMEDY)


def load(train, csv=None):
    """The training rows (those not in the test file) or the test rows; `csv` replaces the download."""
    name = "train" if train else "test"
    made_by = {"repository": REPOSITORY, "file": f"{name}.csv", "rows": ROWS[name]}
    test = load(train=False) if train else None
    if train:
        made_by["without"] = test.meta["crc32"]

    def make():
        whole = rows.parse(csv or fetch(f"{name}.csv"), ROWS[name])
        if not train:
            return whole
        left = whole.table[store.exclude(whole, test)]
        return store.PuzzleSet(left, {"left_out": len(whole) - len(left)})

    return rows.kept(store.cache_folder() / f"sudoku-extreme-{name}.npy", made_by, make, again=csv is not None)


def test_sets():
    """The frozen test sets: (up to 5,000 puzzles of each rating bucket, 25,000 in the file's own mix)."""
    test = load(train=False)
    balanced, natural = store.balanced_test(test, PER_BUCKET, SEED), store.natural_test(test, NATURAL, SEED)
    return test.subset(balanced), test.subset(natural)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--train-csv", metavar="PATH", help="train.csv, if it was fetched by hand")
    parser.add_argument("--test-csv", metavar="PATH", help="test.csv, if it was fetched by hand")
    options = parser.parse_args(argv)
    try:
        test = load(train=False, csv=options.test_csv)
        train = load(train=True, csv=options.train_csv)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    print(f"{train.meta['left_out']:,} training rows are in the test file and left out")
    for name, puzzles in (("train", train), ("test", test)):
        counts = np.bincount(store.bucket_of(puzzles.rating), minlength=len(store.BUCKETS))
        mix = ", ".join(f"{bucket}: {count:,}" for bucket, count in zip(store.BUCKET_NAMES, counts))
        print(f"{name}: {len(puzzles):,} puzzles; by rating {mix}")


if __name__ == "__main__":
    main()
