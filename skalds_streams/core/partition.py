"""Which partition a task id belongs to:

Kafka's default partitioner (murmur2 of the key), as Java, kafka-python and aiokafka have it.
"""

from __future__ import annotations

_M = 0x5BD1E995
_MASK = 0xFFFFFFFF


def murmur2(data: bytes) -> int:
    """Kafka's murmur2 of `data`, an unsigned 32-bit number.

    Source: org.apache.kafka.common.utils.Utils, described in Kafka's docs.
    """
    length = len(data)
    h = 0x9747B28C ^ length
    for at in range(0, length & ~3, 4):
        k = int.from_bytes(data[at : at + 4], "little") * _M & _MASK
        k = (k ^ (k >> 24)) * _M & _MASK
        h = (h * _M & _MASK) ^ k
    tail = data[length & ~3 :]
    if tail:
        h = (h ^ int.from_bytes(tail, "little")) * _M & _MASK
    h = (h ^ (h >> 13)) * _M & _MASK
    return h ^ (h >> 15)


def partition_of(task_id: str, partitions: int) -> int:
    """Partition number of a task id, 0 ≤ number < partitions."""
    return (murmur2(task_id.encode()) & 0x7FFFFFFF) % partitions
