"""The oracle: sends what was once sent through a real Envoy, and compares what becomes of it.  See `__main__`.

scenario ──► stage (namespace, replay, agent, backends, client) ──► judge (pure) ──► report
"""
