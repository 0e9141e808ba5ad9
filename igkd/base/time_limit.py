"""Durations as text, and the time limits --hours and --until, after which long work stops by itself."""

import datetime
import math

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


def seconds_left(hours: float | None, until: str | None, now: datetime.datetime) -> float | None:
    """Seconds until the work must stop; None if there is no limit.

    Args:
        now: local time.

    Raises:
        UserError: `until` is not a time, or lies in the past.
    """
    if hours is not None:
        return hours * 3600
    return None if until is None else seconds_until(until, now)


def seconds_until(text: str, now: datetime.datetime) -> float:
    """Seconds from `now` until a time of day, within the next 24 hours, or until a date and time.

    Raises:
        UserError: the text is neither, or lies in the past. A time of day that passed within the last hour counts as past, since that
            is more likely a mistake than a request for 23 hours.
    """
    try:
        time = datetime.time.fromisoformat(text)
        if time.tzinfo is not None or ":" not in text:  # a zone would need a date, and 2026 is meant as a year
            raise ValueError
        end = datetime.datetime.combine(now.date(), time, now.tzinfo)
    except ValueError:
        try:
            end = datetime.datetime.fromisoformat(text)
        except ValueError:
            raise UserError(f"--until {text} is no time; give one such as 07:00 or 2026-01-31T07:00") from None
        seconds = (end.astimezone() - now.astimezone()).total_seconds()
        if seconds <= 0:
            raise UserError(f"--until {text} is in the past; it is {now:%Y-%m-%d %H:%M} now") from None
        return seconds
    seconds = (end - now).total_seconds()
    if -3600 < seconds <= 0:
        raise UserError(f"--until {text} is in the past; it is {now:%H:%M} now (give a date, too, if you mean another day)")
    return seconds if seconds > 0 else seconds + 24 * 3600


def duration(seconds: float) -> str:
    """A duration as text with one or two units: 45 s, 12 min, 3 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
