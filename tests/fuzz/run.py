"""`make fuzz`: libFuzzer on the parser for half of FUZZ_SECONDS (default 300), Envoy against it for the other half.

Inputs that reach something new are kept in build/fuzz/corpus, and go to Envoy too.  What is found is printed and kept
in build/fuzz/findings: put it into tests/fuzz/corpus, so that it stays found.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
import time
from itertools import islice

from tests.conftest import ENVOY_BINARY
from tests.fuzz.campaign import (
    Compared,
    compare_requests,
    compare_responses,
    corpus_cases,
    corpus_replies,
    mutated_cases,
    mutated_replies,
    run_libfuzzer,
)
from tests.fuzz.reading import BUILD, NativeError, Reader, missing

_ROUND = 4000
_SHOWN = 20


def _report(compared: Compared) -> int:
    print(compared, flush=True)
    folder = BUILD / "findings"
    for number, (what, data) in enumerate(compared.found):
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{hashlib.sha256(data).hexdigest()[:16]}.http"
        file.write_bytes(data)
        if number < _SHOWN:
            print(f"FOUND {what}\n    kept as {file}", flush=True)
    return len(compared.found)


def main() -> int:
    """0: nothing was found."""
    seconds = int(os.environ.get("FUZZ_SECONDS", "300"))
    seed = int(os.environ.get("FUZZ_SEED", "0")) or time.time_ns() % 2**31
    if (why := missing()) or not ENVOY_BINARY.exists():
        print(f"fuzz: {why or 'needs the Envoy binary: make setup'}", file=sys.stderr)
        return 2
    print(f"fuzz: seed {seed} (FUZZ_SEED), {seconds} s (FUZZ_SECONDS)", flush=True)
    kept = BUILD / "corpus"
    until = time.monotonic() + seconds
    try:
        executed = run_libfuzzer(max(seconds // 2, 1), seed, kept)
        reader = Reader()
    except NativeError as error:
        print(f"fuzz: {error}", file=sys.stderr)
        return 2
    print(executed, flush=True)
    if executed.crash is not None:
        print(f"{executed.output[-6000:]}\nFOUND an input that breaks the parser:\n    {executed.crash!r}")
        return 1
    files = sorted(kept.iterdir())
    found = _report(asyncio.run(compare_requests(ENVOY_BINARY, corpus_cases(reader, files))))
    found += _report(asyncio.run(compare_responses(ENVOY_BINARY, corpus_replies(reader, files))))
    cases, replies = mutated_cases(reader, seed), mutated_replies(reader, seed)
    while time.monotonic() < until and not found:
        found += _report(asyncio.run(compare_requests(ENVOY_BINARY, list(islice(cases, _ROUND)))))
        found += _report(asyncio.run(compare_responses(ENVOY_BINARY, list(islice(replies, _ROUND // 2)))))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
