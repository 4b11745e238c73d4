"""The kernel half: C programs, how they are compiled (`build`), and the loader over libbpf (`loader`, `maps`, ...)."""
