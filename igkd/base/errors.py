"""UserError, the one exception whose message is written for users, and `run_cli`, which prints it."""

import os
import re
import sys
from collections.abc import Callable

CREDENTIALS = "credentials are not typed, since command lines are kept in logs and results: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
CONTINUES = "the same command continues where this one ended"
STOPPED, INTERRUPTED = f"stopped; {CONTINUES}", 130
"""The sentence printed and the exit status returned after Ctrl-C."""
TIME_IS_UP = f"the time is up; {CONTINUES}"
"""The sentence printed where --hours or --until ended the work; the exit status is then 0."""
_TYPED = re.compile(r"://[^/\s]*:[^\s]*@|://[^/\s]*@")


class UserError(Exception):
    """An error that the user can correct; its message names the file or value and says what to do."""


def run_cli(main: Callable[[], int | None]) -> None:
    """Run `main` as a program: a UserError becomes one sentence and exit status 1, Ctrl-C exit status 130."""
    try:
        if any(_TYPED.search(argument) for argument in sys.argv[1:]):
            raise UserError(f"an argument has a name or a secret before an @ in a URL; {CREDENTIALS}")
        try:
            status = main() or 0
        except SystemExit:  # as --help ends
            sys.stdout.flush()
            raise
        sys.stdout.flush()  # here, where an error is caught, and not when Python ends
        sys.exit(status)
    except UserError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:
        # Python would try again to write what is left, when it ends, and print that it cannot.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except KeyboardInterrupt:
        print(STOPPED, file=sys.stderr)
        sys.exit(INTERRUPTED)


def printable(text: str) -> str:
    """The text with control characters replaced, since names from other people's files could otherwise control the terminal."""
    return "".join(letter if letter.isprintable() or letter == "\n" else "\N{REPLACEMENT CHARACTER}" for letter in text)


def first_line(error: BaseException) -> str:
    """First line of an error's message, shortened to fit into a sentence."""
    line = (str(error).strip().splitlines() or [""])[0].strip() or type(error).__name__
    return line if len(line) <= 100 else f"{line[:97]}..."
