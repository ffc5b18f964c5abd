"""What the machine and the shell may be like must not fail a test."""

import signal

from hypothesis import settings

settings.register_profile("default", deadline=None)  # count examples, not milliseconds
settings.load_profile("default")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # by `command &` in a script; inherited
    signal.signal(signal.SIGINT, signal.default_int_handler)
