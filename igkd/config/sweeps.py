"""Settings of jobs.ablate, jobs.tune and jobs.search."""

import datetime
from dataclasses import dataclass, field
from typing import Literal, get_args

from igkd.base.choices import Arm, BadImages, Content, canonical_arm, canonical_arms
from igkd.base.errors import UserError
from igkd.base.settings import PLACE, RUN, SPEED, check_out, check_seeds
from igkd.base.time_limit import check_limit, deadline

Grid = Literal["arms", "controls", "compression", "monte-carlo", "choices"]
PAPER_STUDENTS = tuple(f"mobilenet:cut={cut}" for cut in (3, 5, 7, 9, 11, 13, 15, 17))
"""The paper's eight, from 2.2 to 1,122 times smaller than the teacher."""
GRIDS: tuple[Grid, ...] = get_args(Grid)


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """Settings that all sweeps have."""

    store: str = field(metadata=PLACE)
    """Directory or s3:// URI of the attribution store."""
    out: str = field(metadata=PLACE)
    """Directory of the runs and the report, seen by all nodes; the same command continues what is there."""
    teacher: str | None = field(default=None, metadata=PLACE)
    """Directory of the teacher's checkpoint: for recipes with a live teacher, and to compare students with."""
    epochs: int | None = None
    """Number of epochs of every run, instead of the recipe's."""
    hours: float | None = field(default=None, metadata=SPEED)
    """Stop after so many hours, and report; the same command goes on."""
    until: str | None = field(default=None, metadata=SPEED)
    """Stop at this time of day, such as 07:00, and report; the same command goes on."""
    runs_per_gpu: int = field(default=3, metadata=SPEED)
    """Runs that share a GPU; without GPUs, each run has a processor."""
    dry_run: bool = field(default=False, metadata=SPEED)
    """Only print what would be run, how long it would take from a measured step, and what it would cost."""
    price: float | None = field(default=None, metadata=SPEED)
    """Price of an hour of one GPU (or, without GPUs, of one CPU), for the cost in the estimate."""

    def __post_init__(self) -> None:
        check_limit(self.hours, self.until)
        check_out(self.out)
        if self.runs_per_gpu < 1:
            raise UserError(f"--runs-per-gpu must be at least 1, not {self.runs_per_gpu}")

    def deadline(self, now: datetime.datetime) -> float | None:
        """Unix time at which the sweep must stop; None if there is no limit.

        Args:
            now: the time at which the command was given.

        Raises:
            UserError: --until is no time, or has passed.
        """
        return deadline(self.hours, self.until, now)


@dataclass(frozen=True, kw_only=True)
class AblateConfig(SweepConfig):
    """Run a grid of arms, controls, networks and seeds; every cell is a run that resumes by itself. Grids may be added later, in the same
    directory, and share the cells that they have in common."""

    test_images: str | None = field(default=None, metadata=PLACE)
    """Images on whose test split each student is evaluated once, at the end; without them, only the validation split is used."""
    bad_images: BadImages = field(default="refuse", metadata=SPEED)
    """What to do with a test image that cannot be used."""
    grids: tuple[Grid, ...] = ("arms",)
    """arms: all eight; controls: student, kd, kd+ig, and of them those that use maps with something else in the map's place; compression:
    student, kd and kd+ig at the paper's eight cuts; monte-carlo: the same on random 80 % of the training images; choices: each choice of
    the recipe undone."""
    recipes: tuple[str, ...] = ("paper",)
    """paper, paper-as-published, strong, strong-cpu, strong-night, or JSON files of settings."""
    arms: tuple[Arm, ...] | None = None
    """The arms of the grids, instead of their usual ones: any sums, such as kd+ig or kd+map."""
    contents: tuple[Content, ...] | None = None
    """The contents of the grid controls; by default all that the store allows."""
    students: tuple[str, ...] | None = None
    """The students' networks, such as mobilenet:cut=5; by default the recipe's, and in the grid compression the paper's eight cuts."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds; each cell has a run for each, and runs of one seed are compared with each other."""
    maps: int | None = field(default=None, metadata=SPEED)
    """Number of test images whose maps are evaluated at the end of each run, and compared with those of --teacher."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_seeds(*self.seeds)
        object.__setattr__(self, "arms", canonical_arms(self.arms))


@dataclass(frozen=True, kw_only=True)
class TuneConfig(SweepConfig):
    """Search for the best settings of an arm, by accuracy on the validation split alone: Optuna's TPE proposes, ASHA stops what lags
    behind. OUT/best.json is a recipe for jobs.distill."""

    trials: int = field(default=50, metadata=SPEED)
    """Number of settings to try."""
    recipe: str = field(default="strong", metadata=RUN)
    """Settings that the search begins with, and keeps where it has no range: paper, paper-as-published, strong, strong-cpu, strong-night,
    or a JSON file."""
    arm: Arm = field(default="kd+ig", metadata=RUN)
    """What the students learn from."""
    student: str = field(default="mobilenet:cut=5", metadata=RUN)
    """The student's network."""
    seed: int = field(default=0, metadata=RUN)
    """Seed of the search and of every student."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_seeds(self.seed)
        object.__setattr__(self, "arm", canonical_arm(self.arm))
        if self.trials < 1:
            raise UserError(f"--trials must be at least 1, not {self.trials}")


@dataclass(frozen=True, kw_only=True)
class SearchConfig(SweepConfig):
    """Search for a student that is accurate and fast on the machine that this runs on: candidates are timed untrained, the largest of those
    fast enough are trained, and judged on the validation split alone. OUT/best.json is a recipe for jobs.distill."""

    teacher: str = field(metadata=PLACE)
    """Directory of the teacher's checkpoint: what students have to be faster than."""
    budget: float = field(default=8.0, metadata=SPEED)
    """How many times as fast as the teacher, one image a pass, both by ONNX Runtime in int8 on one thread."""
    candidates: int = field(default=24, metadata=SPEED)
    """Number of random lean architectures to time."""
    students: tuple[str, ...] | None = field(default=None, metadata=SPEED)
    """Networks to time instead of random ones, such as airbench:2:32,128,128 or timm:mobilenetv3_small_050."""
    trials: int = field(default=8, metadata=SPEED)
    """Number of candidates to train, of those that are fast enough."""
    parameters: int | None = None
    """Largest number of parameters of a candidate; by default that of --student."""
    recipe: str = field(default="strong", metadata=RUN)
    """How all of them are trained: paper, paper-as-published, strong, strong-cpu, strong-night, or a JSON file of settings."""
    arm: Arm = field(default="kd", metadata=RUN)
    """What the students learn from."""
    student: str = field(default="mobilenet:cut=5", metadata=RUN)
    """A student to compare them with."""
    rounds: int = 20
    """Rounds of 5 passes in which each network is timed."""
    seed: int = field(default=0, metadata=RUN)
    """Seed of the candidates and of every student."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_seeds(self.seed)
        object.__setattr__(self, "arm", canonical_arm(self.arm))
        if min(self.candidates, self.trials, self.rounds) < 1 or not 0 < self.budget < float("inf"):
            raise UserError("--candidates, --trials and --rounds must be at least 1, --budget above 0")
