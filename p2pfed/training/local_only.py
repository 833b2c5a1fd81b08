"""What a site would have reached alone: the rounds of its federation, with nobody to mix with.

    python -m p2pfed.training.local_only ROUNDS LOCAL_STEPS

reads an ``Open`` frame from stdin, trains and prints JSON: the metrics on the site's hold-out,
their intervals, the model's schema and the number of local steps. Task, settings, seeds and order
of records are those of the daemon. Nothing is sent, stored or charged to a privacy budget: the
model does not leave this process.
"""

import json
import sys
from secrets import token_bytes
from typing import Any, BinaryIO

import numpy as np
import torch

from p2pfed.errors import P2pfedError
from p2pfed.training import frames
from p2pfed.training.loading import LoadedTask, load
from p2pfed.training.loop import RoundInput, round_seed
from p2pfed.training.privacy.randomness import SECRET_BYTES
from p2pfed.training.sampling import sampler_seed


def train_alone(loaded: LoadedTask, rounds: int, local_steps: int) -> frames.Evaluated:
    """Train for ``rounds`` rounds from the genesis model, and judge the result.

    :raises TrainingError: the task failed, or a model or a loss is not finite.
    """
    learner, request = loaded.learner, loaded.request
    parameters = learner.genesis()
    state = np.zeros(learner.layout.floats, np.float32)
    for number in range(rounds):
        given = RoundInput(
            parameters=parameters,
            state=state,
            round_number=number,
            local_steps=local_steps,
            seed=round_seed(request.seed, request.site, number),
            sampler_seed=sampler_seed(request.seed, request.site),
            steps=request.maximum_local_steps,
            # The same noise as in the federation, so that the two can be compared.
            noise_secret=token_bytes(SECRET_BYTES) if learner.privacy is not None else None,
        )
        parameters, state = np.empty_like(parameters), np.empty_like(state)
        learner.train(loaded.datasets.training, given, parameters, state, _unheard)
    return learner.assess(loaded.datasets.holdout, parameters, state)


def _unheard(_: frames.Progress) -> None:
    """Nobody waits for its progress."""


def _read_request(source: BinaryIO) -> frames.Open:
    """:raises FrameError: there is no ``Open`` in it."""
    body = source.read(frames.body_length(source.read(frames.LENGTH.size)))
    request = frames.decode(body)
    if not isinstance(request, frames.Open):
        raise frames.FrameError(f"{type(request).__name__} is no Open")
    return request


def main(arguments: list[str], source: BinaryIO) -> dict[str, Any]:
    """:raises P2pfedError: the task cannot be loaded or trained."""
    rounds, local_steps = int(arguments[0]), int(arguments[1])
    request = _read_request(source)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_num_threads(request.threads)
    loaded = load(request)
    evaluated = train_alone(loaded, rounds, local_steps)
    return {
        "model_schema": loaded.learner.schema.digest.hex(),
        "steps": rounds * local_steps,
        "metrics": evaluated.metrics,
        "intervals": evaluated.intervals,
    }


if __name__ == "__main__":
    try:
        print(json.dumps(main(sys.argv[1:], sys.stdin.buffer)))  # noqa: T201
    except P2pfedError as error:
        sys.exit(str(error))
