"""What ``make gpu`` runs on a machine with an NVIDIA GPU: build, tests, sanitizers and benchmarks in a few minutes."""
