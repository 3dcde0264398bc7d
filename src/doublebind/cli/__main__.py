"""Runs the command line as `python -m doublebind.cli`."""

from doublebind.cli.main import main

if __name__ == "__main__":
    main()
