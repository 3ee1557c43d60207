"""The campaign that `make demo` runs: real files, real computation, two jobs that must fail."""
