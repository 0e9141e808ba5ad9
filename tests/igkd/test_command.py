"""The command igkd, as a user types it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from igkd.__main__ import COMMANDS, OF_A_STORE, OF_IMAGES
from igkd.images import drawn_shapes
from tests.helpers.paths import ROOT
from tests.helpers.programs import run_program

PARSED = [name for name, command in COMMANDS.items() if command.settings]


def test_help_names_every_command_and_a_wrong_one_is_told() -> None:
    done = run_program("igkd", ["--help"])
    assert done.returncode == 0 and all(f"  {name} " in done.stdout for name in COMMANDS)
    done = run_program("igkd", ["distil"])
    assert done.returncode == 2 and "there is no command 'distil'; it is one of pipeline, teacher" in done.stderr


def test_help_needs_neither_torch_nor_ray() -> None:
    """Which take seconds to import."""
    program = (
        "import sys, igkd.__main__ as command\n"
        "for name in [*(n for n, c in command.COMMANDS.items() if c.settings), 'distill']:\n"
        "    sys.argv = ['igkd', name, '--help']\n"
        "    try:\n"
        "        command.main()\n"
        "    except SystemExit as end:\n"
        "        assert end.code == 0, name\n"
        "assert not {'torch', 'ray'} & set(sys.modules), 'slow'\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(f"usage: igkd {name} " in done.stdout for name in [*PARSED, "distill"])
    assert "--recipe" in done.stdout and "--image-size" in done.stdout


def test_what_was_found_is_said_before_torch_and_ray_are_imported() -> None:
    """And a mistake in the command as well."""
    program = (
        "import sys, igkd.__main__ as command\n"
        "from igkd.base.errors import UserError\n"
        "required = {'pipeline': ['--preset', 'demo', '--out', 'o'], 'teacher': ['--out', 'o']}\n"
        "required['precompute'] = ['--store', 's', '--teacher', 't']\n"
        "for name in command.OF_IMAGES:\n"
        "    for images in ('shapes:train=300,test=20', 'nonsense'):\n"
        "        sys.argv = [f'igkd {name}', '--images', images, *required[name]]\n"
        "        try:\n"
        "            command.introduce(name)\n"
        "        except UserError as error:\n"
        "            print(name, error)\n"
        "command.introduce('latency')\n"
        "assert not {'torch', 'ray'} & set(sys.modules), 'slow'\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    names = ", ".join(drawn_shapes.CLASSES[:4])
    for name in OF_IMAGES:
        assert (
            f"{name}: 300 train pictures of {len(drawn_shapes.CLASSES)} classes ({names}, ...) in shapes:train=300,test=20" in done.stdout
        )
        assert f"{name} 'nonsense' names no images" in done.stdout


def test_a_store_is_told_of_before_torch_and_ray_are_imported(tmp_path: Path) -> None:
    """What is no store is left to the job, which says so."""
    for name, plan in (
        ("store", '{"image_shape": [32, 24], "rows": 50000, "classes": ["a", "b"]}'),
        ("half", '{"rows": 5'),
        ("list", "[1]"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "plan.json").write_text(plan)
    program = (
        "import sys, igkd.__main__ as command\n"
        "for name in command.OF_A_STORE:\n"
        "    for store in ('store', 'half', 'list', 'none'):\n"
        "        sys.argv = [f'igkd {name}', '--store', store, '--out', 'o', *(['--teacher', 't'] if name == 'search' else [])]\n"
        "        command.introduce(name)\n"
        "assert not {'torch', 'ray'} & set(sys.modules), 'slow'\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    line = "50,000 images of 32x24 pixels and 2 classes in the store store"
    assert (done.returncode, done.stdout.splitlines()) == (0, [f"{name}: {line}" for name in OF_A_STORE]), done.stderr


@pytest.mark.parametrize("name", PARSED)
def test_help_is_of_the_settings_that_the_command_parses(name: str) -> None:
    module, _, settings = COMMANDS[name]
    assert f"parse({settings.partition(':')[2]}," in (ROOT / f"{module.replace('.', '/')}.py").read_text()


@pytest.mark.parametrize("arguments", [["--help"], [], ["evaluate", "--help"], ["sweeps", "--help"]])
def test_a_reader_that_has_seen_enough_is_no_error(arguments: list[str]) -> None:
    reads, writes = os.pipe()
    os.close(reads)  # before anything is written
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    program = [sys.executable, "-m", "igkd", *arguments]
    done = subprocess.run(program, cwd=ROOT, env=buffered, stdout=writes, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writes)
    assert (done.returncode, done.stderr) == (141, "")
