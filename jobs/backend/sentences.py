"""Errors of ours inside errors of Ray. Ray Train's controller, a process of its own, imports this; so it imports little."""

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import ray
import ray.train

from igkd.base.errors import UserError


def user_error(error: BaseException | None) -> UserError | None:
    """The UserError somewhere inside an error of Ray, if there is one."""
    seen: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        one = pending.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, UserError) and not isinstance(one, ray.exceptions.RayError):
            return UserError(str(one).partition("\nFailed to ")[0])  # without Ray Data's advice on its settings for retries
        failures = getattr(one, "worker_failures", None) or {}
        causes = (getattr(one, name, None) for name in ("cause", "controller_failure"))
        pending += [*causes, one.__cause__, one.__context__, *failures.values()]
    return None


@contextlib.contextmanager
def one_sentence() -> Iterator[None]:
    """A context for code in a worker of Ray Train: a UserError is raised as itself, without the traceback in the log that others get."""
    try:
        yield
    except Exception as error:
        cause = user_error(error)
        if cause is None:
            raise
        logging.disable(logging.CRITICAL)  # for the rest of this process, which Ray ends
        raise cause from None


class Final(ray.train.UserCallback):
    """Ends a run at a UserError, which would come again at every retry.

    Ray Train treats all errors of workers alike. But an error in its own controller, where this is called, is not retried."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        causes = [cause for error in worker_exceptions.values() if (cause := user_error(error)) is not None]
        if causes:
            logging.disable(logging.CRITICAL)  # of a process that has nothing left to do
            raise causes[0]
