"""What a child runs first: ask the kernel to be killed with its parent, then become the server.

Run as a script, `python -I -S launch.py PARENT_PID PROGRAM ARG…`, never imported. The wish (PR_SET_PDEATHSIG)
survives exec, so it holds for the server, also while it is stopped by SIGSTOP. The kernel sends it when the *thread*
that forked us ends; see `process`.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Tie this process to PARENT_PID and exec PROGRAM. Exits with a line on stderr when that is not possible."""
    parent = int(sys.argv[1])
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        sys.exit(f"launch: prctl: {os.strerror(ctypes.get_errno())}")
    if os.getppid() != parent:  # it died before the wish was heard
        sys.exit("launch: the parent is gone")
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # the parent's thread may block what the server must hear
    try:
        os.execv(sys.argv[2], sys.argv[2:])  # noqa: S606 - the whole point
    except OSError as error:
        sys.exit(f"launch: {sys.argv[2]}: {error}")


if __name__ == "__main__":
    main()
