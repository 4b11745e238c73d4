"""`python -m demo [--stay]`: what `make demo` runs."""

from __future__ import annotations

import argparse
import sys

from demo.run import run
from demo.screen import Screen
from tests.bench.lab import LabError, interrupt_once


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m demo", description="bookinfo under XLB, end to end")
    parser.add_argument("--stay", action="store_true", help="keep everything running at the end, to try things")
    arguments = parser.parse_args()
    interrupt_once()
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
