"""Tools that test the product: the simulator of whole worlds, chaos, the witness; and `worker`, a kit with which users
test their workers. Nothing here is imported by a running system.
"""
