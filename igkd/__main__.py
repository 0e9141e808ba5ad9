"""The command `igkd`: every job and every tool as a subcommand, each the same as its module run by python -m."""

import importlib
import runpy
import sys

from igkd.base.errors import run_cli

COMMANDS = {
    "pipeline": ("jobs.pipeline", "the main job: a teacher, its attribution store, students, and a report"),
    "teacher": ("jobs.teacher", "train a teacher"),
    "precompute": ("jobs.precompute", "compute the attribution store"),
    "distill": ("jobs.distill", "distil one student from a store"),
    "ablate": ("jobs.ablate", "a grid of students: arms, controls, cuts, seeds"),
    "tune": ("jobs.tune", "search for good settings of an arm"),
    "search": ("jobs.search", "search for a student that is accurate and fast on this machine"),
    "nodes": ("jobs.nodes", "wait for an autoscaling cluster's nodes, then run a job"),
    "store": ("igkd.store", "verify or describe an attribution store"),
    "sweeps": ("igkd.sweeps", "status or report of a sweep, or of a pipeline"),
    "import": ("igkd.evaluation.import_network", "make a checkpoint of a network that was trained elsewhere"),
    "evaluate": ("igkd.evaluation.evaluate", "judge a checkpoint on images"),
    "explain": ("igkd.report.explain", "draw what networks look at"),
    "export": ("igkd.deployment.export", "make a device's file of a checkpoint"),
    "latency": ("igkd.deployment.latency", "how fast models are on this machine"),
}
"""By subcommand: the module, and what it does."""
SETTINGS = {
    "pipeline": ("igkd.config.pipeline", "PipelineConfig"),
    "teacher": ("igkd.config.teacher", "TeacherConfig"),
    "precompute": ("igkd.config.precompute", "PrecomputeConfig"),
    "ablate": ("igkd.config.sweeps", "AblateConfig"),
    "tune": ("igkd.config.sweeps", "TuneConfig"),
    "search": ("igkd.config.sweeps", "SearchConfig"),
    "import": ("igkd.config.import_network", "ImportConfig"),
    "evaluate": ("igkd.config.evaluate", "EvaluateConfig"),
    "explain": ("igkd.config.explain", "ExplainConfig"),
    "export": ("igkd.config.export", "ExportConfig"),
    "latency": ("igkd.config.latency", "LatencyConfig"),
}
"""Module and class of the settings that a subcommand parses. Its help needs only these; the command itself imports torch and Ray, which
takes seconds."""


def usage() -> str:
    """One screen."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name.ljust(width)}  {purpose}" for name, (_, purpose) in COMMANDS.items()]
    return "\n".join(["usage: igkd COMMAND [OPTIONS]", "", *lines, "", "igkd COMMAND --help tells each one's options."])


def show_help(name: str) -> None:
    """Print a subcommand's help and end, if its settings are known here; as its own program would."""
    if name == "distill":
        from igkd.config.recipes import parse_distill  # whose defaults are those of --recipe

        parse_distill("igkd distill")
    elif name in SETTINGS:
        from igkd.config.command_line import parse

        module, settings = SETTINGS[name]
        parse(getattr(importlib.import_module(module), settings), f"igkd {name}")


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
        show_help(name)
    runpy.run_module(COMMANDS[name][0], run_name="__main__", alter_sys=True)
    return 0


def program() -> None:
    """The console script."""
    run_cli(main)


if __name__ == "__main__":
    program()
