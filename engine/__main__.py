"""`python -m calotype` and `calotype`: the command line.

`calotype doctor` is answered here, before anything is imported that may be what it is asked about.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; see `calotype.cli.main` for its exit codes."""
    if sys.argv[1:2] == ["doctor"] and set(sys.argv[2:]) <= {"--json"}:
        from .doctor import doctor

        try:
            doctor.main(as_json="--json" in sys.argv)
        except OSError as failed:  # a disk that is full, a pipe that was closed
            sys.exit(f"calotype: output: {failed.strerror or failed}")
        return
    try:
        from calotype.benchmarks import cli  # the suite's commands, the exporter's and the runtime's
    except (Exception, SystemExit) as broken:  # typer is missing or broken
        told = str(broken) or type(broken).__name__
        sys.exit(f"calotype: the command line cannot start ({told}); calotype doctor says what is broken.")
    cli.main()


if __name__ == "__main__":
    main()
