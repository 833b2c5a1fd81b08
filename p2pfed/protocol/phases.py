"""The phases of a round, in the order in which a peer runs through them."""

from enum import StrEnum


class Phase(StrEnum):
    STARTING = "starting"
    ASKING = "asking"  # a restored peer learns from its neighbours which rounds it has signed
    TRAINING = "training"
    JOINING = "joining"  # one from far behind awaits its neighbours' present models,
    ADOPTING = "adopting"  # and tries what they come to on its own hold-out
    PUBLISHING = "publishing"
    COLLECTING = "collecting"
    AGGREGATING = "aggregating"
    COMMITTING = "committing"
    FINISHED = "finished"
    HALTED = "halted"
