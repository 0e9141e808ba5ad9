"""A grid of students: python -m jobs.ablate --store URI --test-images SRC --out DIR --grids arms controls --seeds 0 1 2"""

from pathlib import Path

from igkd.base import provenance
from igkd.config.command_line import parse
from igkd.config.sweeps import AblateConfig
from igkd.store import Store
from igkd.sweeps.grid import cells, settled
from igkd.sweeps.ledger import read_rows, read_status
from igkd.sweeps.publish import publish
from jobs.backend.cells import check, resident, train_cells
from jobs.backend.estimates import print_estimate
from jobs.backend.runtime import run_job, start_ray


def ablate(config: AblateConfig) -> int:
    """Run what is not done yet; gives the exit status, 1 if runs failed."""
    seconds = config.seconds_left(provenance.local_now())
    store = Store.open(config.store)
    grid = resident(settled(cells(config, store), store), store)
    check(grid)
    if config.dry_run:
        start_ray()
        done = {row["cell"] for row in read_rows(Path(config.out))}
        todo = [cell for cell in grid if cell.name not in done]
        print(f"{len(grid)} runs, {len(grid) - len(todo)} done before", flush=True)
        if todo:
            print_estimate(todo, config.runs_per_gpu, config.price)
        return 0
    finished = train_cells(grid, config.out, config.runs_per_gpu, seconds)
    print(publish(Path(config.out)), flush=True)
    return 0 if finished or (seconds is not None and not read_status(Path(config.out)).failures) else 1


def main() -> int:
    config = parse(AblateConfig, "python -m jobs.ablate")
    return ablate(config)


if __name__ == "__main__":
    run_job(main)
