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

import torch

from p2pfed.errors import P2pfedError
from p2pfed.training import frames
from p2pfed.training.child import prepare_torch
from p2pfed.training.loading import LoadedTask, load
from p2pfed.training.privacy.randomness import SECRET_BYTES
from p2pfed.training.round_input import RoundInput


def train_alone(loaded: LoadedTask, rounds: int, local_steps: int) -> frames.Evaluated:
    """Train for ``rounds`` rounds from the genesis model, and judge the result.

    :raises TrainingError: the task failed, or a model or a loss is not finite.
    """
    learner, request = loaded.learner, loaded.request
    model = learner.fresh()
    for number in range(rounds):
        given = RoundInput.at_site(
            model,
            seed=request.seed,
            site=request.site,
            round_number=number,
            local_steps=local_steps,
            steps=request.maximum_local_steps,
            # As much noise as in the federation, so that the two can be compared.
            noise_secret=token_bytes(SECRET_BYTES) if learner.privacy is not None else None,
        )
        model, _ = learner.train_new(loaded.datasets.training, given)
    return learner.assess(loaded.datasets.holdout, model.parameters, model.state)


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
    prepare_torch()
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
