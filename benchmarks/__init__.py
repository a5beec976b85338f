"""Benchmarks: `python -m benchmarks`, `python -m benchmarks.startup`, `python -m benchmarks.readme`, from the repository's root."""
