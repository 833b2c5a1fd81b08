"""``python -m p2pfed.training.audit``: reads an ``AuditRequest`` as JSON from its input, says on
its error output how far it is, and prints the report as JSON."""

import json
import signal
import sys

from pydantic import ValidationError

from p2pfed.errors import P2pfedError
from p2pfed.training.audit.request import ADAPTER
from p2pfed.training.audit.site import audit_site
from p2pfed.training.child import prepare_torch


def main() -> int:
    # The command that started this says what an interruption means.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        request = ADAPTER.validate_json(sys.stdin.buffer.read())
    except ValidationError as error:
        print(f"no audit request: {error}", file=sys.stderr)  # noqa: T201
        return 2
    prepare_torch()
    try:
        report = audit_site(request, _say)
    except P2pfedError as error:
        print(json.dumps({"error": str(error), "exit_code": int(error.exit_code)}))  # noqa: T201
        return int(error.exit_code)
    print(json.dumps(report.to_json()))  # noqa: T201
    return 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
