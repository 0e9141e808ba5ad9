"""A grid of students: python -m jobs.ablate --store URI --test-images SRC --out DIR --grids arms controls --seeds 0 1 2"""

from pathlib import Path

from igkd.base import provenance
from igkd.base.storage import check_writable
from igkd.config.command_line import parse
from igkd.config.sweeps import AblateConfig
from igkd.evaluation.progress import progress
from igkd.store import Store
from igkd.sweeps.grid import cells, settled
from igkd.sweeps.ledger import STATUS, read_rows
from jobs.backend.cells import check, resident, train_cells
from jobs.backend.estimates import print_estimate
from jobs.backend.runtime import begin_ray, run_job, start_ray
from jobs.backend.sweep_progress import conclude


def ablate(config: AblateConfig) -> int:
    """Run what is not done yet; gives the exit status, 1 if runs failed."""
    deadline = config.deadline(provenance.now())
    check_writable(Path(config.out) / STATUS)
    store = Store.open(config.store)
    begin_ray()
    grid = resident(settled(cells(config, store), store), store)
    check(grid)
    if config.dry_run:
        start_ray()
        ended = {row["cell"]: row for row in read_rows(Path(config.out))}
        todo = [cell for cell in grid if cell.name not in ended]
        print(progress([ended[cell.name] for cell in grid if cell.name in ended], len(grid)), flush=True)
        if todo:
            print_estimate(todo, config.runs_per_gpu, config.price)
        return 0
    train_cells(grid, config.out, config.runs_per_gpu, deadline)
    return conclude(Path(config.out))


def main() -> int:
    config = parse(AblateConfig, "python -m jobs.ablate")
    return ablate(config)


if __name__ == "__main__":
    run_job(main)
