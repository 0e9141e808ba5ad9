"""Brings rows from before networks had names (`cut`, `lean`) to today's form (`network`, `config.student`, `arm`, `without`).

    python results/rename_networks.py

Figures, commands and commits stay as they were. Rows that have names already are left alone.
"""

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
HALF = "shapes", "demo"
"""Parts of paths whose teacher was mobilenet:width=0.5,stride=2."""


def name_of(cut: int, lean: str, half: bool) -> str:
    """A network's name."""
    if lean:
        return f"lean:{lean}"
    options = [f"cut={cut}"] * (cut > 0) + ["width=0.5", "stride=2"] * half
    return ":".join(filter(None, ["mobilenet", ",".join(options)]))


def renamed(row: dict[str, Any], half: bool) -> dict[str, Any]:
    """A result row in today's form; the label has no longer the network in it."""
    if "arm" in row and "without" not in row and row.get("job", "distill") == "distill":
        label, config = str(row["name"]), row.get("config", {})
        row = row | {"arm": config.get("arm", label.split(", ")[0]), "without": label.partition(", without ")[2]}
    if "cut" not in row:
        return row
    config = dict(row.get("config", {}))
    lean = str(config.pop("lean", ""))
    row = {("network" if key == "cut" else key): (name_of(row["cut"], lean, half) if key == "cut" else value) for key, value in row.items()}
    for key in ("name", "arm"):
        if key in row:
            row[key] = str(row[key]).replace(f", lean {lean}", "") if lean else row[key]
    if row.get("job") == "distill":
        config = {("student" if key == "cut" else key): (row["network"] if key == "cut" else value) for key, value in config.items()}
    elif row.get("job") == "teacher":
        config = {key: value for key, value in config.items() if key not in ("width", "stride")} | {"network": row["network"]}
    return row | {"config": config} if config else row


def main() -> None:
    for path in sorted(HERE.rglob("*.json*")):
        half = any(part in str(path.relative_to(HERE)) for part in HALF)
        text = path.read_text()
        if path.suffix == ".jsonl":
            found = "".join(json.dumps(renamed(json.loads(line), half)) + "\n" for line in text.splitlines())
        else:
            value = json.loads(text)
            if isinstance(value, dict) and isinstance(value.get("networks"), list):
                value["networks"] = [
                    {"network": name_of(one["cut"], one["lean"], half), "candidate": bool(one["lean"])}
                    | {key: figure for key, figure in one.items() if key not in ("cut", "lean")}
                    if "cut" in one
                    else one
                    for one in value["networks"]
                ]
            elif isinstance(value, dict) and isinstance(value.get("lean"), str):
                value = {("student" if key == "lean" else key): (f"lean:{one}" if key == "lean" else one) for key, one in value.items()}
            elif isinstance(value, list):
                value = [renamed(one, half) for one in value]
            elif isinstance(value, dict):
                value = renamed(value, half)
            found = json.dumps(value, indent=1) + "\n"
            if json.loads(found) == json.loads(text):
                continue
        path.write_text(found)


if __name__ == "__main__":
    main()
