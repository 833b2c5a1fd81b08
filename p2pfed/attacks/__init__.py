"""Attacks by name, for simulations, tests and the hostile daemon of the demo.

No site file or topology file can select one, and the daemon that ``p2pfed run`` starts never
imports this package.
"""

from p2pfed.attacks.attack import Attack, DataAttack, MessageAttack, ModelAttack, Offer, View
from p2pfed.attacks.catalogue import ATTACKS, make

__all__ = [
    "ATTACKS",
    "Attack",
    "DataAttack",
    "MessageAttack",
    "ModelAttack",
    "Offer",
    "View",
    "make",
]
