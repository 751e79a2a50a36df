"""Messages of the library in the words of the command line: options in the place of parameters.

The library names parameters in backticks, `max_new_tokens` or `keep=0.3`, because it does not know how it is
called. Here they become `--max-new-tokens` and `--keep 0.3`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# Parameters of the library that commands name otherwise. True and False stand for a flag's two sides.
_OTHERWISE = {
    "verify=False": "--no-verify",
    "targets": "--target",
    "baselines": "--baseline",
}
_PARAMETER = re.compile(r"`([a-z][a-z0-9_]*)(?:=([^`]*))?`")


def with_options(message: str, options: Mapping[str, str]) -> str:
    """The message with the command line's options in the place of parameters.

    Args:
        message: of an error or a note.
        options: the option of each parameter's name, as `options_of` gives them.
    """

    def replaced(match: re.Match[str]) -> str:
        name, value = match.groups()
        if (whole := match.group()[1:-1]) in _OTHERWISE:
            return _OTHERWISE[whole]
        option = options.get(name) or _OTHERWISE.get(name)
        if option is None:
            return match.group()
        return option if value in (None, "True") else f"{option} {value.strip(chr(39) + chr(34))}"

    return _PARAMETER.sub(replaced, message)


def options_of(group: Any, command: str | None) -> dict[str, str]:
    """Parameter name -> option, of every command; where commands differ, as the running one has it."""
    found: dict[str, str] = {}
    commands = dict(group.commands)
    running = commands.pop(command, None)
    for one in [*commands.values(), *([] if running is None else [running])]:
        for parameter in one.params:
            if parameter.param_type_name == "option":
                found[parameter.name] = max(parameter.opts, key=len)
    return found
