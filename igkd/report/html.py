"""Shared by all pages: the environment of the templates, the format of figures, and the provenance of rows."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jinja2

from igkd.report import charts


def environment() -> jinja2.Environment:
    """The jinja2 environment with this package's templates and the filters that they use."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(percent=percent, millions=millions, figure=figure, image_uri=charts.image_uri, map_uri=charts.map_uri)
    made.globals.update(palette=charts.PALETTE, outline=charts.outline, mapped_arms=_mapped_arms)
    return made


def provenance(rows: Sequence[dict[str, Any]], commands: Iterable[str]) -> dict[str, Any]:
    """The distinct commands, versions, commits and machines of rows, in order; usually one of each."""
    sources = [row.get("provenance", {}) for row in rows]
    names = dict.fromkeys(name for source in sources for name in source.get("versions", {}))
    facts = {
        "commit": _distinct(source.get("commit") for source in sources),
        "machine": _distinct(source.get("machine") for source in sources),
        **{name: _distinct(source.get("versions", {}).get(name) for source in sources) for name in names},
    }
    told = dict.fromkeys([*commands, *(source["command"] for source in sources if source.get("command"))])
    return {"facts": facts, "commands": list(told), "runs": list(zip(rows, sources, strict=True))}


def source_name(images: str) -> str:
    """A data set's name for titles: the last part of its path, or the kind of source."""
    kind, _, rest = images.partition(":")
    if kind == "hf":
        return "/".join(rest.partition("@")[0].partition(",")[0].split("/")[:2])
    return rest.rstrip("/").rsplit("/", 1)[-1] if kind in ("parquet", "folder") else kind


def percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f}" if math.isfinite(share) else "\u2013"


def millions(count: int) -> str:
    return f"{count / 1e6:,.{1 if count >= 1e7 else 2}f} M"


def figure(value: Any) -> str:
    """Any value as text: integers with grouped digits, fractions with four significant digits; yes and no."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _mapped_arms(gallery: Sequence[Any]) -> list[str]:
    """The arms that have maps in a gallery, in order of appearance."""
    return list(dict.fromkeys(arm for row in gallery for arm in row.student_maps))


def _distinct(values: Iterable[Any]) -> str:
    return "; ".join(dict.fromkeys(str(value) for value in values if value)) or "not recorded"
