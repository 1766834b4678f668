"""All experiment files, of the root and of pos_embedding/."""

import lineage

ROOT = lineage.ROOT
load = lineage.module


def names():
    return sorted(experiment.name for experiment in lineage.find().values())
