"""A synthetic electrocardiogram with known rhythms, for tests and examples: nobody's heart.

Each beat is a sum of five Gaussian waves (P, Q, R, S, T), as in McSharry et al., A dynamical
model for generating synthetic electrocardiogram signals, IEEE TBME 50 (2003), laid out on beat
times that a rhythm gives; a lead weighs the waves in its own way. Baseline wander and noise are
added, and a recorder has a gain of its own.
"""

import numpy as np
from numpy.typing import NDArray

RHYTHMS = ("sinus", "tachycardia", "fibrillation")
"""Regular at 55 to 90 beats a minute; regular at 120 to 170; irregular and without P waves."""

# Of each wave: when, in seconds from the R wave; how high, in millivolts; how wide, in seconds.
WAVES = ((-0.17, 0.15, 0.025), (-0.03, -0.12, 0.010), (0.0, 1.0, 0.012), (0.03, -0.25, 0.010),
         (0.24, 0.30, 0.045))  # fmt: skip
NOISE_MILLIVOLTS = 0.04
WANDER_MILLIVOLTS = 0.15


def synthetic_electrocardiograms(
    count: int,
    *,
    leads: int,
    samples: int,
    sampling_hertz: float,
    seed: int,
    gain: float = 1.0,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Records (count, leads, samples), float32, in millivolts times ``gain``, and the number of
    each one's rhythm in ``RHYTHMS``, (count,), in turn."""
    generator = np.random.Generator(np.random.PCG64(seed))
    labels = np.arange(count) % len(RHYTHMS)
    seconds = np.arange(samples) / sampling_hertz
    records = np.empty((count, leads, samples), np.float32)
    for record, label in zip(records, labels, strict=True):
        beats = _beat_times(RHYTHMS[label], float(seconds[-1]), generator)
        for lead in range(leads):
            axis = generator.normal(1.0, 0.15, len(WAVES)) * (1.0 if lead % 2 == 0 else 0.6)
            trace = np.zeros(samples)
            for number, (delay, height, width) in enumerate(WAVES):
                if number == 0 and RHYTHMS[label] == "fibrillation":
                    continue
                distance = (seconds[None, :] - beats[:, None] - delay) / width
                trace += axis[number] * height * np.exp(-0.5 * distance**2).sum(axis=0)
            wander = generator.uniform(0, 2 * np.pi)
            trace += WANDER_MILLIVOLTS * np.sin(2 * np.pi * 0.25 * seconds + wander)
            record[lead] = gain * (trace + generator.normal(0, NOISE_MILLIVOLTS, samples))
    return records, labels


def _beat_times(rhythm: str, seconds: float, generator: np.random.Generator) -> NDArray[np.float64]:
    """When the R waves are; the spread of their distances is what tells fibrillation."""
    slowest, fastest, spread = {
        "sinus": (55.0, 90.0, 0.03),
        "tachycardia": (120.0, 170.0, 0.02),
        "fibrillation": (70.0, 140.0, 0.25),
    }[rhythm]
    mean = 60.0 / generator.uniform(slowest, fastest)
    needed = int(3 * seconds / mean) + 3
    gaps = mean * generator.normal(1.0, spread, needed).clip(0.4, 1.8)
    times = generator.uniform(-mean, 0.0) + np.cumsum(gaps)
    return times[times < seconds + 0.5]
