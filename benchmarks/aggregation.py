"""Aggregation against a plain copy of the same input bytes, in one process.

    python benchmarks/aggregation.py [--parameters 10000000] [--models 5] [--repetitions 5]

The ratio is the time of ``numpy.copyto`` over all input models divided by the time of the
rule over them: above 1, the rule is faster than copying its input once.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np

from p2pfed.aggregation import NeighbourModel, aggregate
from p2pfed.rules_catalogue import RULES

TARGETS = {"coordinate_median": 1.5, "median_clipping": 0.5, "geometric_median": 0.1}


def seconds(job: Callable[[], object]) -> float:
    started = time.perf_counter()
    job()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parameters", type=int, default=10_000_000)
    parser.add_argument("--models", type=int, default=5, help="the own model and its neighbours")
    parser.add_argument("--threads", type=int, default=1, help="of the rules; the copy has one")
    parser.add_argument("--repetitions", type=int, default=5)
    arguments = parser.parse_args()
    generator = np.random.default_rng(0)
    models = [
        generator.standard_normal(arguments.parameters, dtype=np.float32)
        for _ in range(arguments.models)
    ]
    copies = [np.empty_like(model) for model in models]
    out = np.empty_like(models[0])
    weight = 1.0 / arguments.models
    neighbours = [NeighbourModel(f"n{i}", model, weight) for i, model in enumerate(models[1:])]

    def copy() -> None:
        for source, target in zip(models, copies, strict=True):
            np.copyto(target, source)

    megabytes = sum(model.nbytes for model in models) / 1e6
    print(
        f"{arguments.models} models of {arguments.parameters} float32, {megabytes:.0f} MB, 1 thread"
    )
    print(f"{'rule':28} {'s':>8} {'GB/s in':>8} {'ratio':>6}  target")
    for rule in RULES:

        def run(rule: str = rule) -> None:
            aggregate(
                rule, models[0], neighbours, out, byzantine_neighbours=1, threads=arguments.threads
            )

        run()
        copy()
        pairs = [(seconds(copy), seconds(run)) for _ in range(arguments.repetitions)]
        taken = statistics.median(pair[1] for pair in pairs)
        ratio = statistics.median(pair[0] / pair[1] for pair in pairs)
        target = f">= {TARGETS[rule]}" if rule in TARGETS else ""
        print(f"{rule:28} {taken:8.4f} {megabytes / 1e3 / taken:8.2f} {ratio:6.2f}  {target}")


if __name__ == "__main__":
    main()
