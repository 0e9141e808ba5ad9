"""The family `module`: a network made by a function of the user's, `module:package.module:function`. Making it runs the user's code.

Therefore only a module that the user has named may be imported: on the command line, or in the environment variable IGKD_MODULES. A
checkpoint, store or recipe that names another is refused, since such files may come from anyone (docs/security.md).
"""

import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from igkd.base.errors import UserError
from igkd.base.schema import short
from igkd.networks.preparation import Preparation

ALLOWED = "IGKD_MODULES"
"""Environment variable: names such as package.module:function, separated by commas, whose code may be run."""
CLASSES = ("classes", "num_classes", "n_classes", "nb_classes", "nclasses", "num_class", "n_class", "num_labels")
"""What a parameter for the number of classes is called."""
_NAME = r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*"
_TYPED = re.compile(rf"(?<!\w)module:({_NAME})", re.ASCII)


class CodeRefused(UserError):
    """A file names code that the user did not name."""


def allowed() -> set[str]:
    """The names that the user gave: those on this process's command line, and those in IGKD_MODULES, which child processes inherit."""
    given = {name.strip().removeprefix("module:") for name in os.environ.get(ALLOWED, "").split(",")} - {""}
    return given | {name for argument in sys.argv[1:] for name in _TYPED.findall(argument)}


def environment() -> dict[str, str]:
    """What processes on other machines need in their environment to build the same networks; empty if no module is named."""
    return {ALLOWED: ",".join(sorted(allowed()))} if allowed() else {}


def check_allowed(options: str) -> None:
    """Raise CodeRefused unless the user has named this module."""
    if options not in allowed():
        raise CodeRefused(
            f"module:{options} is code, and only a file names it, which may come from anyone: if you trust it, allow it by "
            f"{ALLOWED}={options} in front of the command"
        )
    os.environ.update(environment())  # for child processes


def canonical(options: str) -> str:
    """The options, checked for their form; runs no code."""
    if len(options) > 200 or re.fullmatch(_NAME, options, re.ASCII) is None:
        raise UserError(f"{short(f'module:{options}')} names no network; one is module:package.module:function")
    return options


def _function(options: str) -> Callable[..., Any]:
    """The user's function; importing its module runs the module.

    Raises:
        UserError: the user did not name it, or it cannot be imported, or is no function.
    """
    check_allowed(canonical(options))
    place, _, name = options.partition(":")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    try:
        function = getattr(importlib.import_module(place), name)
    except ModuleNotFoundError as error:
        if error.name is not None and (place == error.name or place.startswith(f"{error.name}.")):
            raise UserError(
                f"there is no module {error.name} for module:{options}: it is looked for in the current directory, in $PYTHONPATH and "
                "among the installed packages"
            ) from None
        raise UserError(f"module:{options} cannot be imported: {error}; install what it needs") from None
    except AttributeError:
        raise UserError(f"the module {place} has no function {name}, which module:{options} names") from None
    except Exception as error:  # the user's code may raise anything
        raise UserError(f"module:{options} cannot be imported: {_what(error)}") from None
    if not callable(function):
        raise UserError(f"{name} in the module {place} is no function: it must take the number of classes and give an nn.Module")
    return function  # type: ignore[no-any-return]


def _what(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or ['no message'])[0][:160]}"


def _parameter(options: str) -> inspect.Parameter | None:
    """The function's parameter for the number of classes: one that is called so, or else the first; None if it has no parameters."""
    try:
        parameters = list(inspect.signature(_function(options)).parameters.values())
    except (TypeError, ValueError):  # some functions written in C have no signature
        return None
    named = next((one for one in parameters if one.name in CLASSES and one.kind is not inspect.Parameter.POSITIONAL_ONLY), None)
    if named is not None:
        return named
    return (
        parameters[0]
        if parameters and parameters[0].kind not in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        else None
    )


def build(options: str, classes: int) -> nn.Module:
    """The network that the function gives for a number of classes; a function without parameters decides about its classes itself.

    Raises:
        UserError: the user did not name this module, or the function fails or gives no nn.Module.
    """
    function = _function(options)
    try:
        parameter = _parameter(options)
        if parameter is not None and parameter.name in CLASSES and parameter.kind is not inspect.Parameter.POSITIONAL_ONLY:
            network = function(**{parameter.name: classes})
        else:
            network = function() if parameter is None else function(classes)
    except UserError:
        raise
    except Exception as error:  # the user's code may raise anything
        raise UserError(f"module:{options} fails to make a network: {_what(error)}") from error
    if not isinstance(network, nn.Module):
        raise UserError(f"module:{options} gives a {type(network).__name__}, not an nn.Module")
    if any(isinstance(one, UninitializedParameter | UninitializedBuffer) for one in (*network.parameters(), *network.buffers())):
        raise UserError(f"module:{options} has lazy layers, which have no weights before the first picture: give their sizes")
    if other := [key for key, value in network.state_dict().items() if not isinstance(value, Tensor)]:
        raise UserError(f"module:{options} keeps {short(other[0])} in its state, which is no tensor: a checkpoint has tensors alone")
    return network


def tap(options: str, teacher: str) -> str | None:
    """Always None: `networks.taps` finds layers of equal size."""
    return None


def student(options: str, teacher: str | None, side: int) -> str:
    """The options, which leave nothing open for a teacher to fill in."""
    return canonical(options)


def preparation(options: str) -> Preparation:
    """What the function, or else its module, says in `input_size` (a side, (H, W) or (3, H, W)), `mean`, `std`, `short_side` (pixels of the
    shorter side before the crop) and `interpolation`; all of them may be missing.

    Raises:
        UserError: one of them is not what it should be.
    """
    function = _function(options)
    place = importlib.import_module(options.partition(":")[0])

    def said(name: str) -> Any:
        return getattr(function, name, getattr(place, name, None))

    try:
        size = said("input_size")
        sides = None if size is None else tuple(int(side) for side in (size if isinstance(size, tuple | list) else (size, size)))[-2:]
        mean, std = (None if said(name) is None else tuple(float(value) for value in said(name)) for name in ("mean", "std"))
        found = Preparation(
            image_shape=None if sides is None else (sides[0], sides[1]), mean=mean, std=std,
            short_side=int(said("short_side") or 0), interpolation=said("interpolation") or "bicubic",
        )  # fmt: skip
    except (TypeError, ValueError, IndexError) as error:
        raise UserError(f"module:{options}: its input_size, mean, std, short_side or interpolation is none: {error}") from None
    if found.interpolation not in ("nearest", "bilinear", "bicubic"):
        raise UserError(f"module:{options}: its interpolation is not one of nearest, bilinear, bicubic")
    return found


def outputs(options: str) -> int | None:
    """Number of classes that the function gives unless told: its parameter's default; None if only the network shows it."""
    parameter = _parameter(options)
    return parameter.default if parameter is not None and type(parameter.default) is int else None


def categories(options: str, count: int) -> tuple[str, ...] | None:
    """The module's or function's `classes`, names in the order of the logits, if there are so many; else None."""
    function = _function(options)
    names = getattr(function, "classes", getattr(importlib.import_module(options.partition(":")[0]), "classes", None))
    return tuple(map(str, names)) if isinstance(names, tuple | list) and len(names) == count else None


def pretrained(options: str) -> nn.Module:
    """The network as the function gives it, with the weights that it gave it.

    Raises:
        UserError: see `build`; or the function must be told the number of classes.
    """
    count = outputs(options)
    if _parameter(options) is not None and count is None:
        raise UserError(
            f"module:{options} must be told its number of classes: give weights=FILE, or import it by igkd import with --classes"
        )
    return build(options, count or 0)
