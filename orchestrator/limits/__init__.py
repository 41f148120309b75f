"""Limits and budgets that hold across replicas.

`quota`: what is allowed, and how much of it is left. `limits`: what the engine asks. `redis`: the one place that counts, with the
scripts of `lua/`; `places` and `readers` are its parts, `terms` what it asks about, `refusals` and `headers` what is said of it.
"""
