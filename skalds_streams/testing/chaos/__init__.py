"""Chaos: a whole system of real processes, disturbed at random, and everything that can be checked from outside.

`python -m skalds_streams.testing.chaos --help`. Rooms: `plan` (which faults, from a seed), `cluster` (broker, Redis,
nodes, witness), `link`, `disk` and `clock` (what of the machine can be broken), `faults` (does them), `stream` (the
commands), `run` (one run), `verdict`, `leaks`. The witness and the workers are `testing.witness` and
`testing.verifiable`.
"""
