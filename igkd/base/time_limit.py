"""Durations as text, and the time limits --hours and --until, after which long work stops by itself."""

import datetime
import math
import time

from igkd.base.errors import UserError


def check_limit(hours: float | None, until: str | None) -> None:
    """Refuse an invalid time limit.

    Raises:
        UserError: both limits are given, or the hours are not above 0.
    """
    if hours is not None and until is not None:
        raise UserError("--hours and --until say the same thing: give one of them")
    if hours is not None and not 0 < hours < math.inf:
        raise UserError(f"--hours must be above 0, not {hours}")


def deadline(hours: float | None, until: str | None, now: datetime.datetime) -> float | None:
    """Unix time at which the work must stop; None if there is no limit.

    Args:
        now: the time at which the command was given.

    Raises:
        UserError: `until` is not a time, or lies in the past.
    """
    if hours is not None:
        return now.timestamp() + hours * 3600
    return None if until is None else now.timestamp() + seconds_until(until, now)


def seconds_left(deadline: float | None) -> float | None:
    """Seconds from now until a deadline in Unix time, at least one; None if there is none."""
    return None if deadline is None else max(1.0, deadline - time.time())


def seconds_until(text: str, now: datetime.datetime) -> float:
    """Seconds from `now` until a time of day, within the next 24 hours, or until a date and time.

    Raises:
        UserError: the text is neither, or lies in the past. A time of day that passed within the last hour counts as past, since that
            is more likely a mistake than a request for 23 hours.
    """
    try:
        clock = datetime.time.fromisoformat(text)
        if clock.tzinfo is not None or ":" not in text:  # a zone would need a date, and 2026 is meant as a year
            raise ValueError
    except ValueError:
        try:
            end = datetime.datetime.fromisoformat(text)
        except ValueError:
            raise UserError(f"--until {text} is no time; give one such as 07:00 or 2026-01-31T07:00") from None
        seconds = (end.astimezone() - now.astimezone()).total_seconds()
        if seconds <= 0:
            raise UserError(f"--until {text} is in the past; it is {now:%Y-%m-%d %H:%M} now") from None
        return seconds
    # Each day's time is made of the machine's own clock: on the days on which that is put forward or back, 24 hours later is another one.
    here = now.astimezone()
    days = (here.date(), here.date() + datetime.timedelta(days=1))
    today, tomorrow = ((datetime.datetime.combine(day, clock).astimezone() - here).total_seconds() for day in days)
    if -3600 < today <= 0:
        raise UserError(f"--until {text} is in the past; it is {here:%H:%M} now (give a date, too, if you mean another day)")
    return today if today > 0 else tomorrow


def duration(seconds: float) -> str:
    """A duration as text with one or two units: 45 s, 12 min, 3 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
