"""The comparison with no mesh, one node Envoy and a sidecar pair.  Run it with `make bench`."""
