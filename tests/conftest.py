"""What all tests start from: one thread for each of two workers, interrupts that interrupt, no plugin file of another test."""

import os
import signal

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # in the commands that they start as well
# a shell starts its background jobs, and so all that those start, with interrupts ignored
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def no_plugin_files():
    """What one test's command line loads is gone in the next: workers take each other's tests, so any may follow any."""
    from tokenzoo.zoo import plugins  # after the threads are set

    before = plugins.configured()
    yield
    plugins.configure(*before)
