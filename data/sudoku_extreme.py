"""sudoku-extreme, from Hugging Face: fetched once, checked, and kept in binary form.

    python data/sudoku_extreme.py
    python data/sudoku_extreme.py --train-csv train.csv --test-csv test.csv    # downloaded by hand

A training row is left out if its puzzle, or an equivalent under a symmetry, is in the test file.
"""

import argparse
import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data import rows, store
from plumbing import disk

REPOSITORY = "sapientinc/sudoku-extreme"
ROWS = {"train": 3_831_994, "test": 422_786}  # of its two files
TIMEOUT = 5  # seconds to wait for the hub's first answer
REMEDY = (
    "run it again with a network, or download train.csv and test.csv by hand from "
    f"https://huggingface.co/datasets/{REPOSITORY}/tree/main and run python data/sudoku_extreme.py "
    "--train-csv PATH --test-csv PATH; an experiment also takes --data file.csv or --data generated"
)


def download(name):
    """The path of a file of the data set; a download that was cut off is resumed."""
    return from_hub(REPOSITORY, name)


def from_hub(repository, name):
    """The path of a file of a data set on Hugging Face."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache

    file = {"repo_id": repository, "repo_type": "dataset", "filename": name}
    if not isinstance(try_to_load_from_cache(**file), str):
        get_hf_file_metadata(hf_hub_url(**file), timeout=TIMEOUT)  # one attempt; hf_hub_download makes seven
    return hf_hub_download(**file, etag_timeout=TIMEOUT)


def load(train, csv=None):
    """The training rows (those not in the test file) or the test rows; `csv` replaces the download."""
    name = "train" if train else "test"
    file, count = f"{name}.csv", ROWS[name]
    made_by = {"reader": rows.VERSION, "repository": REPOSITORY, "file": file, "rows": count}
    if train:
        test = load(train=False)
        made_by["without"] = test.meta["crc32"]

    def make():
        whole = rows.parse(csv or rows.fetched(f"{REPOSITORY}, {file}", lambda: download(file), REMEDY), count)
        if not train:
            return whole
        left = whole.table[store.exclude(whole, test)]
        return store.PuzzleSet(left, {"left_out": len(whole) - len(left)})

    path = store.cache_folder() / f"sudoku-extreme-{name}.npy"
    return store.load_or_make(path, made_by, make, again=csv is not None)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--train-csv", metavar="PATH", help="train.csv, if it was downloaded by hand")
    parser.add_argument("--test-csv", metavar="PATH", help="test.csv, if it was downloaded by hand")
    options = parser.parse_args(argv)
    try:
        test = load(train=False, csv=options.test_csv)
        train = load(train=True, csv=options.train_csv)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    lines = [f"{train.meta['left_out']:,} training rows are in the test file and left out"]
    for name, puzzles in (("train", train), ("test", test)):
        buckets = store.rows_by_bucket(puzzles, store.EXTREME)
        mix = ", ".join(f"{bucket}: {len(part):,}" for bucket, part in zip(store.EXTREME_NAMES, buckets))
        lines.append(f"{name}: {len(puzzles):,} puzzles; by rating {mix}")
    disk.say("\n".join(lines))


if __name__ == "__main__":
    main()
