"""Between an agent and the log: take what has come, decide, write rows and what follows from them in one transaction,
then acknowledge.

`batch` is pure (records in, staged transaction out), `log` talks to Kafka (open, read, write), `journal` is the loop
of one partition, `journals` the set of them that this process owns, `group` asks the consumer group whether a
partition is ours, `timers` writes what is due.
"""
