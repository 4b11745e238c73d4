"""Tests by what they need: `unit` (nothing), `kernel`, `envoy`, `e2e`, `fuzz`, `bench`, and the oracle runner."""
