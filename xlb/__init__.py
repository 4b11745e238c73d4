"""The program: command line, agent, keeper, workloads, supervision of Envoy."""
