"""The command line of a sweep's directory: igkd sweeps status DIR, igkd sweeps report DIR"""

import argparse
import time
from pathlib import Path

from igkd.base.errors import CONTINUES, printable, run_cli
from igkd.sweeps.ledger import STATUS, describe, read_rows, read_status
from igkd.sweeps.stages import describe_stages


def main() -> int:
    """Run the command; exit status 0 if the sweep is running or finished, 1 if runs have failed or it stopped before its end."""
    parser = argparse.ArgumentParser(prog="igkd sweeps", description="Look at a sweep.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    status = commands.add_parser("status", help="what is done, running and failed, and when it will end; exit status 1 if it needs you")
    status.add_argument("directory", metavar="DIR", type=Path, help="the --out of a sweep or a pipeline")
    report = commands.add_parser("report", help="draw the report of what is done by now, while it runs or after")
    report.add_argument("directory", metavar="DIR", type=Path, help="the sweep's --out")
    given = parser.parse_args()
    if given.command == "report":
        from igkd.sweeps.publish import publish  # imported here, since it imports torch, which `status` does not need

        print(publish(given.directory))
        return 0
    stages = describe_stages(given.directory)
    print(*map(printable, stages), sep="\n", end="\n" if stages else "")
    if stages and not (given.directory / STATUS).exists():  # a pipeline whose students have not started
        from igkd.store.lease import at_work  # which imports torch, too

        if at_work(str(given.directory)):
            return 0
        print(f"stopped; {CONTINUES}")
        return 1
    pulse, now = read_status(given.directory), time.time()
    print(printable("\n".join(describe(pulse, read_rows(given.directory), now))))
    return 1 if pulse.failures or not (pulse.phase == "finished" or pulse.alive(now)) else 0


if __name__ == "__main__":
    run_cli(main)
