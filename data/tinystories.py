"""TinyStories, from Hugging Face: 2.1 million short stories in simple words, fetched once. CDLA-Sharing-1.0.

    python data/tinystories.py

A model that is trained on text takes --data tinystories, or --data file.txt for any other text.
"""

import argparse
import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data.rows import fetched
from data.sudoku_extreme import from_hub
from plumbing import disk

REPOSITORY = "roneneldan/TinyStories"
FILES = {"train": "TinyStories-train.txt", "validation": "TinyStories-valid.txt"}
END = "<|endoftext|>"  # between two stories
REMEDY = (
    "run it again with a network, or download the file by hand from "
    f"https://huggingface.co/datasets/{REPOSITORY}/tree/main and give --data PATH; "
    "--data generated needs no network"
)


def download(name):
    """The path of a file of the data set; a download that was cut off is resumed."""
    return from_hub(REPOSITORY, name)


def path(side):
    """The file of the training or the validation stories."""
    file = FILES[side]
    return fetched(f"{REPOSITORY}, {file}", lambda: download(file), REMEDY)


def main(argv=None):
    argparse.ArgumentParser(description=__doc__.split("\n\n")[0]).parse_args(argv)
    for side in FILES:
        file = path(side)
        disk.say(f"{side}: {file}, {file.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
