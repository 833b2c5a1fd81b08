"""The exporter process: reads ``Begin`` and then ``Figures`` from stdin, a line each, and answers
each with ``Written`` on stdout. It ends when stdin does."""

import os
import sys
from typing import BinaryIO

from p2pfed.report.exporters.messages import MAX_LINE_BYTES, Begin, Figures, Written
from p2pfed.report.exporters.targets import targets_of


def serve(source: BinaryIO, sink: BinaryIO) -> None:
    """:raises ValueError: a line that is no message."""
    targets = targets_of(Begin.model_validate_json(source.readline(MAX_LINE_BYTES)))
    figures: Figures | None = None
    while True:
        for target in targets.values():
            target.take(figures)
        errors = {name: target.error for name, target in targets.items() if target.error}
        sink.write(Written(errors=errors).line())
        sink.flush()
        line = source.readline(MAX_LINE_BYTES)
        if not line:
            break
        figures = Figures.model_validate_json(line)
    for target in targets.values():
        target.close()


if __name__ == "__main__":
    # What the libraries print must not come between the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    serve(sys.stdin.buffer, answers)
