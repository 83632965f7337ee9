"""Whole worlds on virtual time: the real coordinator, view and skald on a modelled broker, one seed = one world.

    python -m skalds_streams.testing.simulator --seed 7 --trace

Real: core, model, coordinator (journals, log, timers, the question to the group), view, reports, heartbeat,
supervisor, actors, and `runtime` with its order of starting and stopping. Modelled, one module each: the broker, its
consumer group, the network, the clients of both, Faust's consumer, worker hosts, the lock on a skald id.

`plan` draws a world and its schedule from a seed, `world` runs it, `rules` judges it after every event, `verdict`
judges the end, `shrink` makes a failing schedule short. `plan_leases` draws what has to do with leases, `faults` does
what a plan asks for, `machines` has clocks that drift and jump, `roll` is a second opinion on who is there.
"""
