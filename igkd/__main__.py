"""The command `igkd`: every job and every tool as a subcommand, each the same as its module run by python -m."""

import importlib
import runpy
import sys
from typing import Any, NamedTuple

from igkd.base.errors import run_cli
from igkd.base.storage import filesystem, list_names, parse_json, read_file


class Command(NamedTuple):
    """A subcommand."""

    module: str
    purpose: str
    """What it does, in a few words."""
    settings: str = ""
    """Module and class of the settings that it parses. Help needs only these; the command itself imports torch and Ray, which takes
    seconds."""


COMMANDS = {
    "pipeline": Command(
        "jobs.pipeline", "the main job: a teacher, its attribution store, students, and a report", "igkd.config.pipeline:PipelineConfig"
    ),
    "teacher": Command("jobs.teacher", "train a teacher", "igkd.config.teacher:TeacherConfig"),
    "precompute": Command("jobs.precompute", "compute the attribution store", "igkd.config.precompute:PrecomputeConfig"),
    "distill": Command("jobs.distill", "distil one student from a store"),
    "ablate": Command("jobs.ablate", "a grid of students: arms, controls, cuts, seeds", "igkd.config.sweeps:AblateConfig"),
    "tune": Command("jobs.tune", "search for good settings of an arm", "igkd.config.sweeps:TuneConfig"),
    "search": Command("jobs.search", "search for a student that is accurate and fast on this machine", "igkd.config.sweeps:SearchConfig"),
    "nodes": Command("jobs.nodes", "wait for an autoscaling cluster's nodes, then run a job"),
    "store": Command("igkd.store", "verify or describe an attribution store"),
    "sweeps": Command("igkd.sweeps", "status or report of a sweep, or of a pipeline"),
    "import": Command(
        "igkd.evaluation.import_network",
        "make a checkpoint of a network that was trained elsewhere",
        "igkd.config.import_network:ImportConfig",
    ),
    "evaluate": Command("igkd.evaluation.evaluate", "judge a checkpoint on images", "igkd.config.evaluate:EvaluateConfig"),
    "explain": Command("igkd.report.explain", "draw what networks look at", "igkd.config.explain:ExplainConfig"),
    "export": Command("igkd.deployment.export", "make a device's file of a checkpoint", "igkd.config.export:ExportConfig"),
    "latency": Command("igkd.deployment.latency", "how fast models are on this machine", "igkd.config.latency:LatencyConfig"),
}

OF_IMAGES = ("pipeline", "teacher", "precompute")
"""Jobs that begin with images, and with torch and Ray."""
OF_A_STORE = ("distill", "ablate", "tune", "search")
"""Jobs that begin with a store."""


def usage() -> str:
    """One screen."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name.ljust(width)}  {command.purpose}" for name, command in COMMANDS.items()]
    return "\n".join(["usage: igkd COMMAND [OPTIONS]", "", *lines, "", "igkd COMMAND --help tells each one's options."])


def settings_of(name: str) -> Any:
    """What a subcommand parses: its settings, or its help, which ends the program. None if they are not known here."""
    if name == "distill":
        from igkd.config.recipes import parse_distill  # whose defaults are those of --recipe

        return parse_distill("igkd distill")
    if not COMMANDS[name].settings:
        return None
    from igkd.config.command_line import parse

    module, _, settings = COMMANDS[name].settings.partition(":")
    return parse(getattr(importlib.import_module(module), settings), f"igkd {name}")


def introduce(name: str) -> None:
    """Print what a job begins with, or a mistake in its command, before torch and Ray are imported, which takes seconds."""
    if name in OF_IMAGES:
        from igkd.config.presets import make_pipeline
        from igkd.images.open import found_line, open_ahead, tell

        config = settings_of(name)
        images = config.images or make_pipeline(config).precompute.images
        source = open_ahead(images)
        tell(source)
        print(f"{name}: {found_line(source, getattr(config, 'split', 'train'))}", flush=True)
    elif name in OF_A_STORE and (line := store_line(settings_of(name).store)):
        print(f"{name}: {line}", flush=True)


def store_line(uri: str) -> str | None:
    """What a store is of, by its plan; None where there is none that says so, which the job, with torch imported, says better."""
    fs, root = filesystem(uri)
    if "plan.json" not in list_names(fs, root):
        return None
    try:
        plan = parse_json(read_file(fs, f"{root}/plan.json"))
        (height, width), rows, classes = plan["image_shape"], plan["rows"], len(plan["classes"])
        return f"{rows:,} images of {height}x{width} pixels and {classes:,} classes in the store {uri}"
    except (TypeError, KeyError, ValueError):
        return None


def main() -> int:
    """Run a subcommand; gives the exit status."""
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(usage(), flush=True)  # a pipe that is closed shows here, not when Python ends
        return 0 if len(sys.argv) > 1 else 2
    name, *rest = sys.argv[1:]
    if name not in COMMANDS:
        print(f"igkd: there is no command '{name}'; it is one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    sys.argv = [f"igkd {name}", *rest]
    if {"-h", "--help"} & set(rest):
        settings_of(name)
    introduce(name)
    runpy.run_module(COMMANDS[name].module, run_name="__main__", alter_sys=True)
    return 0


def program() -> None:
    """The console script."""
    run_cli(main)


if __name__ == "__main__":
    program()
