"""Clients that others import: Kafka (`kafka`, upstream's names), the keys of Redis, and how this project's own Kafka clients are made."""
