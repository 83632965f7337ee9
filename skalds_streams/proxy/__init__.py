"""Kafka and Redis for others and for us: upstream's KafkaProxy (`kafka`), Redis keys, and how clients are made."""
