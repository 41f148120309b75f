"""What Headgate costs: `python -m bench.run` measures it beside the fastest thing the same stack can do, and writes JSON."""
