"""The keeper: a small process that owns every socket of ours, and outlives the agent.

It accepts captured connections, keeps the pools of upstream connections, relays what the kernel cannot frame, injects
what must not overtake the kernel's bytes, and cleans up after the dead.  It knows nothing of xDS.  One thread, one
epoll; standard library and `bpf` only, so that it stays small.
"""
