"""Every exception that skalds_streams raises on purpose.

    SkaldsError
    ├── ConfigError            a setting is wrong or missing; says which and what it must be
    ├── AdmissionError         this process may not take part, or not any more
    │   ├── TwinError          another process has its skald id
    │   └── DisagreementError  others have other settings, which all must share
    ├── WireError              a record can't be understood; `reason` goes to task.deadletter
    ├── KafkaError             the broker or a topic does not allow what is needed
    │   ├── TopicError         a topic is missing or has a wrong setting; names the command that mends it
    │   ├── ProduceError       a record was not accepted
    │   └── UnreachableError   no broker answered in time, or too few of them
    ├── JournalError           a partition's journal can't go on
    │   ├── FailpointError     a failpoint was told to raise (tests only; defined in `failpoints`)
    │   ├── FencedError        another owner opened this partition
    │   ├── TopicRecreatedError  the log ends before our position
    │   └── TopicResizedError    a topic has another number of partitions than before
    ├── IllegalTransitionError decide was asked for a step that the table does not have
    ├── InvariantError         a row breaks a rule that must always hold
    ├── StateError             what a worker saved can't be read
    ├── HostError              a worker host or the zygote does not answer as agreed
    │   └── NoHostError        this node has no host to run anything in
    ├── TaskEndedError         the one task that this process is there for has failed
    └── DevClusterError        the embedded development cluster did not start

What user code raises in a worker (`NonRetryableError`) lives in `skalds_streams.worker`.
"""


class SkaldsError(Exception):
    """Base of all errors raised on purpose by skalds_streams."""


class ConfigError(SkaldsError):
    """A setting is wrong or missing."""


class AdmissionError(SkaldsError):
    """This process may not take part in the cluster, or not any more."""


class TwinError(AdmissionError):
    """Another process runs under the skald id of this one."""


class DisagreementError(AdmissionError):
    """Somebody in the cluster has another value of a setting that all must share."""


class WireError(SkaldsError):
    """A record can't be understood. `str(error)` is the reason kept with the dead letter."""


class KafkaError(SkaldsError):
    """The broker or a topic does not allow what is needed."""


class TopicError(KafkaError):
    """A topic is missing or has a setting it must not have."""


class ProduceError(KafkaError):
    """A record was not accepted by the broker."""


class UnreachableError(KafkaError):
    """No broker answered within the time given, or not enough of them."""


class JournalError(SkaldsError):
    """The journal of a partition can't go on."""


class FencedError(JournalError):
    """Another owner has opened this partition since."""


class TopicRecreatedError(JournalError):
    """An input topic ends before the position that was applied: it was deleted and made anew."""


class TopicResizedError(JournalError):
    """A topic has another number of partitions than it must have: a task is found by that number."""


class IllegalTransitionError(SkaldsError):
    """A step that the transition table does not have."""


class InvariantError(SkaldsError):
    """A row breaks a rule that must always hold."""


class StateError(SkaldsError):
    """What a worker saved can't be read."""


class HostError(SkaldsError):
    """A worker host or the zygote does not answer as agreed."""


class NoHostError(HostError):
    """This node has had no host for too long: its zygote does not come up, or can't fork. No fault of any task."""


class TaskEndedError(SkaldsError):
    """The one task that this process is there for has failed."""


class DevClusterError(SkaldsError):
    """The embedded development cluster did not start or died."""
