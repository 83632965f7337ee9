"""A node without Kafka: the tasks of a YAML file on this one machine (`SKALD_MODE=edge`).

The file's edits become the same records that would come from Kafka, decided by the same code (`log`), and run by the
same supervisor under the same rows. What is missing is everything that needs others: journals, heartbeats to anybody,
leases, placement elsewhere.
"""
