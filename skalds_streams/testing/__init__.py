"""Tools that test the product: the simulator of whole worlds. Nothing here is imported by a running system."""
