"""What all tests start from: one thread for each of two workers, and interrupts that interrupt."""

import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")  # in the commands that they start as well
# a shell starts its background jobs, and so all that those start, with interrupts ignored
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
