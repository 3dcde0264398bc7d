"""Entry of the command line, as `doublebind` and as `python -m doublebind.cli`."""

import sys

from doublebind.cli.interrupts import end_on_signals


def main() -> int:
    """Run the command of this process's arguments and return its exit code."""
    end_on_signals()  # before imports that take most of a second
    from doublebind.cli.main import main as run_command

    return run_command()


if __name__ == "__main__":
    sys.exit(main())
