"""`python -m tests.oracle DIR [--only NAME]`, or `make oracle SCENARIOS=DIR [ONLY=NAME]`.

Plays every oracle file of the scenarios in DIR (or of DIR itself) against XLB, tells what differs from what Envoy did
and who carried how many requests, and ends with `N passed, N failed` (cases).  Exit code 0 if none failed, 1 if some
did, 2 if there is nothing to play.  How distributions are judged: `statistics`; which headers may differ:
docs/differences.md.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from tests.oracle.play import Played, play_apart
from tests.oracle.scenario import ScenarioError, find_oracles
from tests.oracle.stage import KERNEL


def main() -> int:
    """See the module's docstring.  Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.oracle", description="Compare XLB with recorded answers.")
    parser.add_argument("scenarios", type=Path, help="a folder of scenarios, or one scenario")
    parser.add_argument("--only", metavar="NAME", help="only scenarios of this name (shell wildcards)")
    parser.add_argument(
        "--plain-envoy", action="store_true", help="send the requests through an unmodified Envoy: checks the oracle"
    )
    options = parser.parse_args()
    try:
        files = find_oracles(options.scenarios, options.only)
    except ScenarioError as error:
        print(error, file=sys.stderr)
        return 2
    if os.geteuid() != 0:
        print("the oracle needs root (BPF, cgroups, network namespaces): run it as root", file=sys.stderr)
        return 1
    played = []
    for file in files:
        start = time.monotonic()
        try:
            result = play_apart(file, plain=options.plain_envoy)
        except ScenarioError as error:
            result = Played(file.parent.name, 1, error=str(error))
        print(describe(result, time.monotonic() - start), flush=True)
        played.append(result)
    total = Counter[str]()
    for result in played:
        total.update(result.requests)
    print(f"all: {carried(total)}")
    passed, failed = sum(p.passed for p in played), sum(p.failed for p in played)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


def describe(played: Played, seconds: float) -> str:
    """The lines about one oracle file."""
    lines = [f"{played.title}: {played.passed} of {played.cases} cases passed in {seconds:.1f} s; "]
    lines[0] += carried(played.requests)
    for failure in played.failures:
        lines.append(f"  FAILED case {failure.case}: {failure.request}")
        lines += [f"    {why}" for why in failure.why]
    lines += [f"  ERROR {line}" if not index else f"  {line}" for index, line in enumerate(played.error.splitlines())]
    return "\n".join(lines)


def carried(requests: Mapping[str, int]) -> str:
    """How many requests the kernel carried, and by reason how many it did not."""
    reasons = sorted(((n, reason) for reason, n in requests.items() if reason != KERNEL), reverse=True)
    envoy = sum(n for n, _ in reasons)
    why = f" ({', '.join(f'{reason} {n}' for n, reason in reasons)})" if reasons else ""
    return f"kernel {requests.get(KERNEL, 0)}, Envoy {envoy}{why}"


if __name__ == "__main__":
    sys.exit(main())
