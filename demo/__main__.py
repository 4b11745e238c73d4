"""`python -m demo [--stay]`: what `make demo` runs."""

from __future__ import annotations

import argparse
import signal
import sys

from demo.run import run
from demo.screen import Screen
from tests.bench.lab import LabError


def _terminate(number: int, frame: object) -> None:
    """Turn SIGTERM into what Ctrl-C does, so that there is one way to stop early."""
    raise KeyboardInterrupt


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m demo", description="bookinfo under XLB, end to end")
    parser.add_argument("--stay", action="store_true", help="keep everything running at the end, to try things")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, _terminate)
    screen = Screen()
    try:
        return run(screen, stay=arguments.stay)
    except LabError as error:
        screen.bad(str(error))
        return 1
    except KeyboardInterrupt:
        screen.bad("interrupted; everything that was started has been ended")
        return 1


if __name__ == "__main__":
    sys.exit(main())
