"""The demonstration: bookinfo as real processes, run and changed under XLB.  Start it with `make demo`."""
