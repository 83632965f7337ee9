"""Replay: from recorded inputs and their history to every row again, with the same `decide` that coordinators run.

`reader` reads ranges of topics and never writes, `recording` is what was read, `timeline` decides it once more
(pure), `compare` says where two documents differ, `verify` adds up whether the history and the live table are what
the inputs lead to.
"""
