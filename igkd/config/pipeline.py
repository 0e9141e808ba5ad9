"""Settings of jobs.pipeline."""

from dataclasses import dataclass
from typing import Literal

from igkd.base.choices import Arm, BadImages, canonical_arms
from igkd.base.errors import UserError
from igkd.base.settings import check_out, check_seeds, check_side
from igkd.base.time_limit import check_limit
from igkd.config.distill import DistillConfig
from igkd.config.precompute import PrecomputeConfig
from igkd.config.teacher import TeacherConfig


@dataclass(frozen=True, kw_only=True)
class PipelineConfig:
    """The main job: a teacher if none is given, its attribution store, students of several arms, and a report.

    Settings that are not on the command line have the preset's values.
    """

    preset: Literal["demo", "cifar10", "evidence", "evidence-cpu", "evidence-night"]
    """demo: built-in pictures, a few minutes on two cores; cifar10: the paper's protocol, for a GPU; evidence: arms, controls and recipes
    with 3 seeds, for a GPU; evidence-cpu: all of CIFAR-10 with views, two students, four arms and 3 seeds, for days of processors
    (--dry-run says how many); evidence-night: arms, controls and recipes on 3,000 images, for a night of two cores."""
    out: str
    """Directory of everything; the same command continues what is there."""
    images: str | None = None
    """cifar10, shapes, parquet:URI[,label=COLUMN][,image=COLUMN], folder:PATH or hf:OWNER/NAME."""
    teacher: str | None = None
    """Directory of a teacher's checkpoint; without one, a teacher is trained."""
    class_map: str | None = None
    """JSON or CSV file that says which of --teacher's classes each class of the images is; see jobs.precompute."""
    teacher_epochs: int | None = None
    """The teacher's passes over its training images, instead of the preset's."""
    limit: int | None = None
    """Only this many images go into the store."""
    steps: int | None = None
    """Integration steps of integrated gradients."""
    arms: tuple[Arm, ...] | None = None
    """The students' arms, instead of the preset's: any sums, such as kd+ig."""
    seeds: tuple[int, ...] | None = None
    """Seeds; each arm has a student for each."""
    recipe: str | None = None
    """The students' recipe: paper, paper-as-published, strong, strong-cpu, strong-night, or a JSON file of settings. It replaces all
    settings of the preset's students, epochs included."""
    student: str | None = None
    """The students' network, such as mobilenet:cut=9, instead of the preset's."""
    epochs: int | None = None
    """Number of epochs of every student."""
    image_size: int | None = None
    """Scale and crop every picture to this many pixels a side; needed where sizes are mixed."""
    bad_images: BadImages = "refuse"
    """What to do with an image that cannot be used."""
    workers: int | None = None
    """Data-parallel workers of each training."""
    hours: float | None = None
    """Stop after so many hours; the same command goes on."""
    until: str | None = None
    """Stop at this time of day, such as 07:00; the same command goes on."""
    dry_run: bool = False
    """Only print what would be done, and how long that takes on this machine, from training steps measured for a minute or two."""

    def __post_init__(self) -> None:
        check_limit(self.hours, self.until)
        check_out(self.out)
        check_seeds(*self.seeds or ())
        check_side(self.image_size)
        if self.class_map is not None and self.teacher is None:
            raise UserError("--class-map says which of a given teacher's classes are meant: name that by --teacher")
        object.__setattr__(self, "arms", canonical_arms(self.arms))


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """The configurations of a pipeline's jobs."""

    teacher: TeacherConfig | None
    """None if a teacher is given."""
    precompute: PrecomputeConfig
    students: tuple[DistillConfig, ...]
    """In a preset, one for each arm, control and recipe; `make_pipeline` makes one for each run of them, by the seeds."""
    seeds: tuple[int, ...] = (0,)
    images_per_class: int
    """Pictures of each class whose maps the report compares with the ground truth."""
