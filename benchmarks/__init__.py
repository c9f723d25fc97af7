"""The benchmarks: `python -m benchmarks` lists them."""
