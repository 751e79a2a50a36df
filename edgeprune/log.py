"""What the user should know though nothing went wrong: the logger "edgeprune".

A program that embeds edgeprune hears it as it hears every library, through `logging`; the command line
prints it as `note: ...` behind a command's results. Nothing else in the library prints.
"""

from __future__ import annotations

import logging

from edgeprune.errors import printable

LOGGER = "edgeprune"


def note(text: str) -> None:
    """Tells something that changes what a result means, as a warning of the logger "edgeprune".

    Where no handler is set, Python prints warnings on stderr: a note is never lost by default.
    """
    logging.getLogger(LOGGER).warning("%s", printable(text))
