"""Benchmarks of one optimizer step, beside other optimizers and a bandwidth roofline: ``python -m bench``.

The rooms, each of which imports only from those before it: workloads, optimizers, harness, report, gpu, and studies,
paper and the command.
"""
