"""``make gpu``, on a machine with an NVIDIA GPU: build, tests, sanitizers and benchmarks in a few minutes."""
