"""`optimum-cli export edgeprune`: the command `edgeprune export` within optimum's command line.

Installed as `optimum.commands.register.edgeprune`, where optimum looks for commands of other packages; that
namespace must have no `__init__.py`.
"""

from __future__ import annotations

from argparse import REMAINDER, ArgumentParser

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo
from optimum.commands.export.base import ExportCommand


class EdgepruneExportCommand(BaseOptimumCLICommand):  # type: ignore[misc]  # optimum has no types
    """Hands every argument on, so that options and their help have one source."""

    COMMAND = CommandInfo(
        name="edgeprune", help="Export a vision-language model that prunes visual tokens, with edgeprune."
    )

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        # No argument begins with this, so argparse takes none, --help included, for an option of its own.
        parser.prefix_chars = "\0"
        parser.add_argument("arguments", nargs=REMAINDER, help="the arguments of `edgeprune export`")

    def run(self) -> None:
        from edgeprune.cli.main import main

        raise SystemExit(main(["export", *self.args.arguments]))


REGISTER_COMMANDS = [(EdgepruneExportCommand, ExportCommand)]
