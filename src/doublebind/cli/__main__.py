"""Runs the command line as `python -m doublebind.cli`."""

import sys

from doublebind.cli.main import main

sys.exit(main())
