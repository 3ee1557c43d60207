"""The numbers of docs/benchmarks.md: `make benchmark`, or `python -m tests.benchmarks`."""
