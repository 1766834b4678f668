"""The mistakes of mutants.txt still fit the files that they are made in; making them takes hours and is a command."""

import shlex

from tests import mutants


def test_every_mistake_can_be_made():
    wrong = []
    for mutant in mutants.mutants():
        path = mutants.ROOT / mutant.file
        count = path.read_text().count(mutant.old) if path.exists() else 0
        if count != 1 or mutant.old == mutant.new:
            wrong.append(f"{mutant.name}: its text occurs {count} times in {mutant.file}")
        test = mutants.ROOT / shlex.split(mutant.tests)[0].split("::")[0]
        if not test.exists():
            wrong.append(f"{mutant.name}: there is no {test.name}")
    names = [mutant.name for mutant in mutants.mutants()]
    assert not wrong and len(set(names)) == len(names)
