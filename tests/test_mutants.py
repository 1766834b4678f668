"""The mistakes of mutants.txt still fit the files that they are made in; making them takes hours and is a command."""

import shlex

from tests import mutants


def test_every_mistake_can_be_made():
    found = mutants.mutants()
    for mutant in found:
        assert mutants.applied(mutant) != (mutants.ROOT / mutant.file).read_text(), mutant.name
        test = mutants.ROOT / shlex.split(mutant.tests)[0].split("::")[0]
        assert test.exists(), f"{mutant.name}: there is no {test.name}"
    assert len({mutant.name for mutant in found}) == len(found)
