"""The two faults a user meets: one that stops the work and one that only warns.

Knows no messages: each is written where the fault is found.

Tested in tests/cli/test_console.py.
"""


class RefusalLensError(ValueError):
    """A fault the user can mend; the command line prints its message without a traceback."""


class RefusalLensWarning(UserWarning):
    """Something that weakens the results but does not stop the work."""
