"""What every process knows of the whole cluster:

rows from the changelog, members from the heartbeats. Nobody writes here but the readers.
"""
