"""Everything at once: a mesh with real backends and clients, in network namespaces of its own."""
