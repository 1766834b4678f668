"""Make one deliberate mistake at a time in a copy of the repository, and see whether the tests notice.

python tests/mutants.py                 all of them, about half an hour; what was done before is not done again
python tests/mutants.py muon rate       those whose name holds one of these words
python tests/mutants.py --table         the table of what is known, nothing run

The tests that should notice run first; the others only where those did not. A mistake that survives the whole suite
asks for a test. A mistake in one experiment also makes it differ from its parent without a mark: that check is left
out, so that something must notice what the code does. Results stand in runs/mutants.json, each with a checksum of the
mistake and of the file it is made in.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
RESULTS = ROOT / "runs" / "mutants.json"
DRIFT = [
    f"--deselect=tests/test_lineage.py::test_{name}"
    for name in ("every_difference_is_marked", "difference_is_one_change", "a_mistake_in_a_real_file_is_found")
]
LIMIT = 900  # seconds for the tests of one mistake; one that hangs counts as noticed


@dataclass
class Mutant:
    name: str
    file: str
    old: str  # occurs once in the file
    new: str
    tests: str  # arguments of pytest: the tests that should notice


def mutants():
    """Those of mutants.txt: blocks of `name | file | tests`, the old lines, a line `=>`, the new lines."""
    found = []
    for block in (Path(__file__).parent / "mutants.txt").read_text().strip().split("\n\n"):
        head, _, body = block.partition("\n")
        old, _, new = body.partition("\n=>\n") if "\n=>\n" in body else (body.removesuffix("\n=>"), "", "")
        found.append(Mutant(*(part.strip() for part in head.split("|")[:2]), old, new, head.split("|")[2].strip()))
    return found


def applied(mutant):
    """The text of the file with the mistake in it."""
    text = (ROOT / mutant.file).read_text()
    if text.count(mutant.old) != 1:
        raise SystemExit(
            f"{mutant.name}: its old text occurs {text.count(mutant.old)} times in {mutant.file}, not once"
        )
    return text.replace(mutant.old, mutant.new)


def tested(mutant, folder):
    """-> (the test that noticed, or None; seconds)"""
    copy = Path(folder) / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, tracked.split("\0")):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, copy / name)
    (copy / mutant.file).write_text(applied(mutant))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "NUMBA_CACHE_DIR": str(Path(folder) / "numba")}
    experiment = Path(mutant.file).name.startswith(("exp_", "sudoku", "train_", "ablation_"))
    left_out = DRIFT if experiment and "test_lineage" not in mutant.tests else []
    begin = time.monotonic()
    for which in (shlex.split(mutant.tests), ["tests"]):
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *left_out, *which]
        try:
            done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=LIMIT)
        except subprocess.TimeoutExpired:
            return "it ran too long", time.monotonic() - begin
        if done.returncode:
            failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
            if not failed:
                raise SystemExit(f"{mutant.name}: pytest {' '.join(which)} ran no test: {done.stdout[-300:]}")
            return failed[0].split(" - ")[0].split(" ", 1)[1], time.monotonic() - begin
    return None, time.monotonic() - begin


def key(mutant):
    parts = (mutant.old, mutant.new, (ROOT / mutant.file).read_text())
    return f"{mutant.name}-{zlib.crc32('|'.join(parts).encode()):08x}"


def table(chosen, known):
    rows = [known.get(key(mutant)) for mutant in chosen]
    for mutant, row in zip(chosen, rows):
        result = "not run" if row is None else row["noticed"] or "SURVIVED"
        print(f"{mutant.name:<44} {mutant.file:<28} {result}")
    caught = sum(bool(row and row["noticed"]) for row in rows)
    survived = sum(bool(row and not row["noticed"]) for row in rows)
    print(f"{caught} noticed, {survived} survived, {len(rows) - caught - survived} not run")
    return survived


def main(argv=None):
    from plumbing import disk

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="only mutants whose name or file holds one of these")
    parser.add_argument("--table", action="store_true", help="run nothing")
    options = parser.parse_args(argv)
    chosen = [m for m in mutants() if not options.words or any(w in f"{m.name} {m.file}" for w in options.words)]
    for mutant in chosen:
        applied(mutant)
    RESULTS.parent.mkdir(exist_ok=True)
    known = disk.read_json(RESULTS) or {}
    with tempfile.TemporaryDirectory() as folder:
        for mutant in [] if options.table else chosen:
            if key(mutant) not in known:
                noticed, seconds = tested(mutant, folder)
                known = (disk.read_json(RESULTS) or {}) | {key(mutant): {"noticed": noticed, "seconds": round(seconds)}}
                disk.write_json(RESULTS, known)
                print(f"{mutant.name}: {noticed or 'SURVIVED'} ({seconds:.0f} s)", flush=True)
    return min(1, table(chosen, known))


if __name__ == "__main__":
    sys.exit(main())
