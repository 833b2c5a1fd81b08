"""Corrections of local training where sites' data are unlike; each one formula, freely combined."""

from p2pfed.training.corrections.choice import corrections_for
from p2pfed.training.corrections.correction import Correction, RoundStart

__all__ = ["Correction", "RoundStart", "corrections_for"]
