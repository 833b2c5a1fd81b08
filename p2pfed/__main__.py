"""``python -m p2pfed``."""

import sys

from p2pfed.cli.main import main

sys.exit(main())
