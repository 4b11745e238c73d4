"""The xDS protocol, both ways: client of istiod, resource cache, and ADS server for the node Envoy and for replay.

Nothing is imported here: each module is loaded only by the process that needs it (memory, see `resources`).
"""
