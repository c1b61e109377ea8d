"""`python -m calotype` and `calotype`: the command line.

`calotype doctor` runs here, before the imports that it may have to report as broken.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; see `calotype.cli.main` for its exit codes."""
    if sys.argv[1:2] == ["doctor"] and set(sys.argv[2:]) <= {"--json"}:
        from .doctor import doctor

        try:
            doctor.main(as_json="--json" in sys.argv)
        except OSError as failed:  # a full disk, a closed pipe
            sys.exit(f"calotype: output: {failed.strerror or failed}")
        return
    try:
        from calotype.benchmarks import cli  # the commands of the benchmarks, the exporter and the engine
    except (Exception, SystemExit) as broken:  # typer is missing or broken
        reason = str(broken) or type(broken).__name__
        sys.exit(f"calotype: the command line cannot start: {reason}. Run calotype doctor to see what is broken.")
    cli.main()


if __name__ == "__main__":
    main()
