"""p2pfed under a wall clock that a test can step: ``time.time`` is off by the seconds that stand
in the file named by ``P2PFED_TEST_CLOCK``. The monotonic clock goes on as it is, as it does when
an operator or NTP steps a machine's clock.

    P2PFED_TEST_CLOCK=FILE python shifted_clock.py run --config SITE_FILE
"""

import os
import time
from pathlib import Path

OFFSET_FILE = Path(os.environ["P2PFED_TEST_CLOCK"])
_unshifted = time.time


def shifted() -> float:
    return _unshifted() + float(OFFSET_FILE.read_text())


if __name__ == "__main__":
    time.time = shifted  # before anything is imported that takes the function itself
    from p2pfed.cli.main import main

    main()
