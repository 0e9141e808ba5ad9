"""The one exception that a user is meant to read."""

import sys
from collections.abc import Callable


class UserError(Exception):
    """Something the user can put right; its message names the file, the value and what to do."""


def run_cli(main: Callable[[], int | None]) -> None:
    """Run `main` as a program: a UserError becomes one sentence and exit status 1, Ctrl-C exit status 130."""
    try:
        sys.exit(main() or 0)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:
        sys.exit(141)
    except KeyboardInterrupt:
        print("stopped; the same command continues where this one ended", file=sys.stderr)
        sys.exit(130)
