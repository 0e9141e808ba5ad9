"""The command line of the store: igkd store verify URI, igkd store describe URI."""

import argparse
import sys
from collections.abc import Iterator
from typing import Any

from igkd.base.errors import printable, run_cli
from igkd.store.check import MOST_CLASSES, describe, folded, verify
from igkd.store.read import Store, zero_maps


def main() -> int:
    """Run the command; gives the exit status, 1 if the store is damaged."""
    parser = argparse.ArgumentParser(prog="igkd store", description="Check and describe an attribution store.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, purpose in (
        ("verify", "check every byte, id and hash; name what is wrong and exit with status 1, or 0 if all is well"),
        ("describe", "print counts, classes, completeness error and sizes"),
    ):
        command = commands.add_parser(name, help=purpose, description=purpose[0].upper() + purpose[1:] + ".")
        command.add_argument("uri", metavar="URI", help="directory or s3:// URI of the store")
    given = parser.parse_args()
    if given.command == "describe":
        print(printable("\n".join(lines(describe(given.uri)))))
        return 0
    problems = verify(given.uri, lambda line: print(line, file=sys.stderr, flush=True))
    if problems:
        print(*map(printable, problems), f"{given.uri} is damaged: {len(problems)} problem(s)", sep="\n")
        return 1
    opened = Store.open(given.uri)
    manifest, crops = opened.manifest, "" if opened.views is None else f"; so were the logits of {opened.views.crops} crops of each image"
    print(
        f"{given.uri} is sound: {manifest['rows']} rows in {len(manifest['files'])} file(s), {len(manifest['skipped'])} image(s) skipped; "
        f"every hash, id, label, picture and map was checked{crops}"
    )
    if zero := zero_maps(manifest):
        print(zero)
    return 0


def lines(figures: dict[str, Any], indent: str = "") -> Iterator[str]:
    """Lines of an aligned list of figures; nested figures are indented below their name."""
    width = max((len(name) for name in figures), default=0)
    for name, value in figures.items():
        if name == "classes" and len(value) > MOST_CLASSES:
            yield f"{name.ljust(width)}  {folded(value)}"
        elif isinstance(value, dict):
            yield f"{indent}{name.replace('_', ' ')}"
            yield from lines(value, indent + "  ")
        else:
            shown = " x ".join(map(str, value)) if isinstance(value, list) else f"{value:,}" if isinstance(value, int) else str(value)
            yield f"{indent}{(name if indent else name.replace('_', ' ')).ljust(width)}  {shown}"


if __name__ == "__main__":
    run_cli(main)
