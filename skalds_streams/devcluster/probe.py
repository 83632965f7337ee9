"""Does a server answer, and is it ours? One question each over a plain socket, so that no client library is needed.

A TCP connection alone proves nothing: something else may listen there. So each answer is compared with what only our
child can know.
"""

from __future__ import annotations

import socket
import struct

from skalds_streams.devcluster.ports import HOST

ANSWER_S = 2.0
ANSWER_BYTES_MAX = 64 * 1024
METADATA_KEY, METADATA_VERSION = 3, 2
"""Version 2 is the first whose answer has the cluster id; Kafka 2.1 to 4 understand it."""


def kafka_answers(port: int, cluster_id: str, node_id: int) -> bool:
    """Whether the broker on `port` is of `cluster_id` and lists itself, `node_id`, in its metadata, as it does once
    unfenced.
    """
    try:
        brokers, answered_id = _parse_metadata(_ask(port, _metadata_request()))
    except (OSError, struct.error, UnicodeDecodeError):
        return False
    return node_id in brokers and answered_id == cluster_id


def valkey_answers(port: int, pid: int) -> bool:
    """Whether the server on `port` has loaded its data and is the process `pid`."""
    try:
        with socket.create_connection((HOST, port), ANSWER_S) as connection:
            connection.sendall(b"INFO server\r\nINFO persistence\r\nQUIT\r\n")
            answer = _read_all(connection)
    except OSError:
        return False
    return f"process_id:{pid}\r\n".encode() in answer and b"loading:0\r\n" in answer


def _metadata_request() -> bytes:
    client_id = b"skalds-devcluster"
    header = struct.pack(f">hhih{len(client_id)}s", METADATA_KEY, METADATA_VERSION, 1, len(client_id), client_id)
    no_topics = struct.pack(">i", 0)
    return struct.pack(">i", len(header) + len(no_topics)) + header + no_topics


def _ask(port: int, request: bytes) -> bytes:
    """The body of a Kafka answer, without its length and correlation id. Raises OSError when there is none."""
    with socket.create_connection((HOST, port), ANSWER_S) as connection:
        connection.sendall(request)
        (length,) = struct.unpack(">i", _read_exactly(connection, 4))
        if not 4 <= length <= ANSWER_BYTES_MAX:
            raise OSError(f"not a Kafka answer: {length} bytes")
        return _read_exactly(connection, length)[4:]


def _parse_metadata(body: bytes) -> tuple[set[int], str | None]:
    """(node ids of the brokers, cluster id) of a Metadata answer, version 2."""
    (count,) = struct.unpack_from(">i", body, 0)
    brokers = set()
    offset = 4
    for _ in range(count):
        node_id, host_length = struct.unpack_from(">ih", body, offset)
        brokers.add(node_id)
        offset += 6 + host_length + 4
        offset += 2 + max(0, struct.unpack_from(">h", body, offset)[0])  # rack, -1 is null
    (id_length,) = struct.unpack_from(">h", body, offset)
    return brokers, body[offset + 2 : offset + 2 + id_length].decode() if id_length >= 0 else None


def _read_exactly(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        chunk = connection.recv(count - len(data))
        if not chunk:
            raise OSError("the connection ended early")
        data += chunk
    return data


def _read_all(connection: socket.socket) -> bytes:
    data = b""
    while len(data) < ANSWER_BYTES_MAX and (chunk := connection.recv(4096)):
        data += chunk
    return data
