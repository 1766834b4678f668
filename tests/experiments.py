"""All experiment files, of the root and of pos_embedding/."""

import lineage

ROOT = lineage.ROOT
load = lineage.module


def names():
    return sorted(experiment.name for experiment in lineage.find().values())


def of_the_log():
    """Those that must be what the log's code was; one that says `Log: not in the log.` may change anything."""
    found = lineage.find().values()
    return sorted(one.name for one in found if not one.fields["Log"].startswith("not in the log"))
