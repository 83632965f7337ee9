"""The pure floor: what a row is, what an event does to it, who should run it.

Nothing here reads a clock, rolls dice, knows a loop, a broker or a setting; import-linter holds it to the standard
library. Everything is a value in, a value out, so that the live system, recovery and replay run the same lines.
"""
