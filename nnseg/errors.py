"""What a user can put right. Every other exception is a bug.

    NnsegError            1
    |-- UsageError        2   the command line or an argument is wrong
    |-- DataError         3   a file, a dataset or a plan is wrong
    |   `-- PlanError     3   a plan or a name in it is wrong
    |-- MachineError      4   this machine cannot: device, disk, memory
    |   `-- DiskFullError 4   no case can be written any more
    |-- MissingError      5   a step before this one has not been done
    |-- PartlyDoneError   6   some cases failed and are listed; the others are done
    `-- StoppedError     75   stopped early; the same command goes on

The number is the exit code of the command line. A message says where, what was found, what was
wanted and what to do.
"""

INTERRUPTED = 130  # exit code of a process that Ctrl-C ended
FILE_ONLY = "file_only"  # of a log entry: for the log's file, not for the terminal, which says it


def printable(text: str) -> str:
    r"""Give a text in which nothing is left that a terminal would obey instead of show.

    Messages quote names out of files that others wrote, and a name may hold anything.

    >>> printable("liver\x1b[2J\nspleen")
    'liver\\x1b[2J\nspleen'
    """
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() or one == "\n" else ascii(one)[1:-1] for one in text)


class NnsegError(Exception):
    """The root of the tree; its message is shown to the user in one line."""

    exit_code = 1

    def __str__(self) -> str:
        return printable(super().__str__())


class UsageError(NnsegError):
    """An argument that cannot be meant."""

    exit_code = 2


class DataError(NnsegError):
    """A file or a dataset that cannot be used as it is."""

    exit_code = 3


class PlanError(DataError):
    """A plan that cannot be carried out, or an unknown name in it."""


class MachineError(NnsegError):
    """The device, disk or memory does not suffice."""

    exit_code = 4


class DiskFullError(MachineError):
    """The disk is full: what comes next would fail, too."""


class MissingError(NnsegError):
    """A prerequisite is missing; the message names the command that makes it."""

    exit_code = 5


class PartlyDoneError(NnsegError):
    """Some cases of a batch failed; the rest are done and stay."""

    exit_code = 6


class StoppedError(NnsegError):
    """Stopped on request with everything saved; the same command goes on from here."""

    exit_code = 75
