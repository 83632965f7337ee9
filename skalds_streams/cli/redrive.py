"""Sends the events of dead letters again: what is to be done with each, doing it, and saying what became of it.

Rules: an event goes back to the partition it came from, so that offsets say what came after what; events of one
partition go in the order of their letters; what is sent is awaited (acks=all, idempotent), and an answer that does not
come is no "no"; it is looked before and after the sending whether somebody else does the same.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaConnectionError, KafkaTimeoutError
from aiokafka.errors import KafkaError as ClientError

from skalds_streams.cli.kafka import Cluster, Sent, connect
from skalds_streams.cli.letters import (
    TOPICS_NEEDED,
    Copies,
    Spot,
    bar,
    cleaned,
    find_copies,
    key_words,
    letter_doc,
    misfit,
    read_letters,
    read_record,
    read_records,
    spot_words,
)
from skalds_streams.cli.options import Options
from skalds_streams.cli.output import BAD, GOOD, QUIET, err, harmless, one_line, out, print_json, text, when
from skalds_streams.errors import SkaldsError, WireError
from skalds_streams.model.codec import Limits, parse
from skalds_streams.model.deadletter import Letter, redrive_headers
from skalds_streams.model.record import Record
from skalds_streams.replay.reader import LogReader, open_reader
from skalds_streams.replay.reader import Progress as OnProgress
from skalds_streams.topics import Topics

REQUEST_BYTES_MOST = 64 * 1024 * 1024
"""The broker decides what is too large."""
SEND_S = 30.0
STOP_S = 3.0


# -- what is to be done with each --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Item:
    """A chosen letter, and what is to be done with it.

    `verdict`: send, skip (was sent again before) or refuse; `words`: why; `count`: for which time it would be sent
    again.
    """

    letter: Letter
    verdict: str
    words: str = ""
    count: int = 1


def judge(letter: Letter, copies: Copies, topics: Topics, *, again: bool, is_mended: bool) -> Item:
    """What is to be done with a letter. is_mended: other bytes than the letter's are sent."""
    found = copies.found.get(letter.spot, ())
    count = letter.redrives + len(found) + 1
    wrong = misfit(letter, topics)
    if not wrong and letter.is_cut and not is_mended:
        wrong = "only the beginning of its value was kept; --value-file brings the whole"
    if wrong or letter.source is None:
        return Item(letter, "refuse", wrong, count)
    if found and not again:
        last = found[-1]
        told = f"sent again before, as {last.place} at {when(last.at_ms)}; --again sends it once more"
        return Item(letter, "skip", told, count)
    if letter.spot in copies.unsure and not again:
        told = (
            f"{letter.source.topic}/{letter.source.partition} does not keep all that came after it, so nobody can tell"
            " whether it was sent again before; --again sends it anyway"
        )
        return Item(letter, "refuse", told, count)
    return Item(letter, "send", "", count)


def objection(cluster: Cluster, letter: Letter, record: Record, value: bytes | None) -> str:
    """Why a coordinator with our version and settings would put it back among the dead letters; "" if it would not."""
    settings, source = cluster.settings, letter.source
    if source is None:
        return misfit(letter, cluster.topics)
    limits = Limits(settings.max_record_bytes, settings.max_ids_per_event, settings.max_attachments_bytes)
    event = Record(source.topic, source.partition, source.offset, record.key, value, record.timestamp_ms)
    try:
        parse(event, cluster.topics, limits)
    except WireError as error:
        return cleaned(replace(record, value=value, headers=[("reason", str(error).encode())]), cluster.words).reason
    return ""


@dataclass(slots=True)
class Plan:
    """What is to be done. `value`: bytes to be sent instead of the letter's own."""

    cluster: Cluster
    items: list[Item]
    copies: Copies
    value: bytes | None = None

    @property
    def chosen(self) -> list[Item]:
        """What is to be sent."""
        return [item for item in self.items if item.verdict == "send"]


async def make_plan(
    options: Options, picks: Callable[[Letter], bool], spots: Sequence[Spot], value: bytes | None, *, again: bool
) -> Plan:
    """Read what is chosen, and judge it. Raises SkaldsError for a `value` that would not be understood either."""
    cluster = await connect(options.settings, *TOPICS_NEEDED)
    with bar("reading") as on_progress:
        async with open_reader(cluster.client) as reader:
            letters = await read_letters(cluster, reader, picks, frozenset(spots) or None, on_progress)
            copies = await find_copies(reader, cluster.topics, letters, on_progress=on_progress)
            if value is not None:
                wrong = objection(cluster, letters[0], await read_record(cluster, reader, spots[0]), value)
                if wrong:
                    raise SkaldsError(f"a coordinator would not understand the new value either: {wrong}")
    items = [judge(letter, copies, cluster.topics, again=again, is_mended=value is not None) for letter in letters]
    return Plan(cluster, items, copies, value)


def question(plan: Plan) -> str:
    """ "Send 3 events again: 2 to task.assign, 1 to task.cancel? They count as sent now."."""
    counts = Counter(item.letter.source.topic for item in plan.chosen if item.letter.source)
    where = ", ".join(f"{count:,} to {harmless(topic)}" for topic, count in sorted(counts.items()))
    what = "1 event" if len(plan.chosen) == 1 else f"{len(plan.chosen):,} events"
    return f"Send {what} again: {where}? They count as sent now."


async def foretell(plan: Plan) -> dict[Spot, Sent | str]:
    """Why the chosen ones would be refused once more, where our version would; "" where it would not."""
    by_spot = {item.letter.spot: item.letter for item in plan.chosen}
    answers: dict[Spot, Sent | str] = {}
    async with open_reader(plan.cluster.client) as reader:
        async for record in read_records(plan.cluster, reader, list(by_spot)):
            spot = (record.partition, record.offset)
            value = record.value if plan.value is None else plan.value
            answers[spot] = objection(plan.cluster, by_spot[spot], record, value)
    return answers


# -- sending -----------------------------------------------------------------------------------------------------------


async def send_again(
    cluster: Cluster,
    reader: LogReader,
    items: Collection[Item],
    value: bytes | None,
    on_progress: OnProgress,
) -> dict[Spot, Sent | str]:
    """Send the letters' events, each awaited. Returns for each where it is now, or in words why not.

    value: bytes to be sent instead of the letter's own; None for these.
    """
    by_spot = {item.letter.spot: item for item in items}
    answers: dict[Spot, Sent | str] = {}
    producer = _Producer(cluster)
    try:
        async for record in read_records(cluster, reader, list(by_spot)):
            item = by_spot[record.partition, record.offset]
            if producer.is_silent:
                answers[item.letter.spot] = "not sent, as the broker had stopped to answer"
                continue
            sent = record.value if value is None else value
            answers[item.letter.spot] = await producer.send(item, record, sent)
            on_progress(item.letter.source.topic if item.letter.source else "", len(answers), len(items))
    finally:
        await producer.stop()
    return answers


class _Producer:
    """An idempotent producer that is made anew after an error: a refused record ends the one it was given to."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._producer: AIOKafkaProducer | None = None
        self.is_silent = False

    async def send(self, item: Item, record: Record, value: bytes | None) -> Sent | str:
        source = item.letter.source
        if source is None:
            return misfit(item.letter, self._cluster.topics)
        try:
            async with asyncio.timeout(SEND_S):
                producer = await self._started()
                placed = await producer.send_and_wait(
                    source.topic,
                    value,
                    key=record.key,
                    partition=source.partition,
                    headers=redrive_headers(record, item.count),
                )
            return Sent(placed.topic, placed.partition, placed.offset)
        except (KafkaConnectionError, KafkaTimeoutError, TimeoutError, OSError) as error:
            self.is_silent = True
            return f"the broker did not answer ({error!r}): it may be there, and the next redrive looks for it"
        except ClientError as error:
            await self.stop()
            return f"not accepted: {error!r}"

    async def _started(self) -> AIOKafkaProducer:
        if self._producer is None:
            self._producer = AIOKafkaProducer(
                **self._cluster.client,
                enable_idempotence=True,
                acks="all",
                max_request_size=REQUEST_BYTES_MOST,
            )
            await self._producer.start()
        return self._producer

    async def stop(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            with suppress(ClientError, TimeoutError, OSError):
                async with asyncio.timeout(STOP_S):
                    await producer.stop()


async def carry_out(plan: Plan) -> dict[Spot, Sent | str]:
    """Send what was chosen, and look before and after whether somebody else does the same meanwhile."""
    cluster, letters = plan.cluster, [item.letter for item in plan.chosen]
    with bar("sending") as on_progress:
        async with open_reader(cluster.client) as reader:
            before = await find_copies(reader, cluster.topics, letters, after=plan.copies.ends)
            items = [item for item in plan.chosen if item.letter.spot not in before.found]
            answers = await send_again(cluster, reader, items, plan.value, on_progress)
            after = await find_copies(reader, cluster.topics, [item.letter for item in items], after=before.ends)
    for spot, copies in before.found.items():
        answers[spot] = f"not sent: somebody else has just sent it, as {copies[0].place}"
    for spot, copies in after.found.items():
        answer, others = answers[spot], [copy.place for copy in copies if copy.place != answers[spot]]
        if others and isinstance(answer, Sent):
            answers[spot] = f"sent twice: as {answer}, and by somebody else at the same time, as {others[0]}"
        elif others:
            answers[spot] = others[0]  # it was there, only the answer was not
    return answers


# -- what became of it -------------------------------------------------------------------------------------------------


def tell(options: Options, plan: Plan, answers: Mapping[Spot, Sent | str], *, dry_run: bool) -> bool:
    """Print what became of each. Whether all went well; what was skipped did."""
    docs = [result(item, answers.get(item.letter.spot, ""), dry_run=dry_run) for item in plan.items]
    ok = all(doc["result"] in ("sent", "would send", "skipped") for doc in docs)
    if options.json:
        print_json({"ok": ok, "letters": docs})
        return ok
    for item, doc in zip(plan.items, docs, strict=True):
        failed = doc["result"] in ("failed", "refused")
        line = f"{spot_words(item.letter.spot)}: {result_words(item, doc)}"
        (err() if failed else out()).print(text(one_line(line), BAD if failed else GOOD if doc["sent"] else QUIET))
    if not docs:
        out().print(text("no dead letter was chosen", QUIET))
    return ok


def result(item: Item, answer: Sent | str, *, dry_run: bool) -> dict[str, Any]:
    """What became of one, for `-o json`."""
    doc = {**letter_doc(item.letter), "sent": None, "redrive_count": item.count, "told": item.words}
    if item.verdict != "send":
        return {**doc, "result": "skipped" if item.verdict == "skip" else "refused"}
    if isinstance(answer, Sent):
        return {**doc, "result": "sent", "sent": answer.to_doc()}
    return {**doc, "result": "would send" if dry_run else "failed", "told": answer}


def result_words(item: Item, doc: Mapping[str, Any]) -> str:
    """The same for people."""
    letter = item.letter
    if doc["sent"]:
        return f"sent again as {Sent(**doc['sent'])}"
    if doc["result"] == "would send" and letter.source is not None:
        target = f"{letter.source.topic}/{letter.source.partition}"
        told = f"; it will come back: {doc['told']}" if doc["told"] else ""
        return f"would be sent to {target}, key {key_words(letter.key)}, {letter.size:,} bytes{told}"
    return f"{doc['result']}: {doc['told']}"
