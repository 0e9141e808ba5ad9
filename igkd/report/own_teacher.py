"""The teacher that is drawn beside a student, found by what the student's checkpoint says of how it was made."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from igkd.base.errors import UserError, printable
from igkd.config.explain import ExplainConfig
from igkd.evaluation.evaluate import matching_teacher
from igkd.networks.network import Classifier
from igkd.networks.open import names_network
from igkd.store import Plan, Store


def own_teacher(config: ExplainConfig, card: Mapping[str, Any], model: Classifier) -> tuple[Classifier, dict[str, Any], str] | None:
    """The teacher to draw beside a network, its card and its name: from --teacher, or the one of the store that the network's card names;
    None if neither does, or if that store or its teacher is no longer there.

    Raises:
        UserError: the teacher of --teacher does not exist, or does not fit the network.
    """
    name = f"the checkpoint {config.checkpoint}"
    if config.teacher is not None:
        return *matching_teacher(config.teacher, model, name), config.teacher
    made = card["made"].get("config")
    return teacher_of_store(made.get("store"), made.get("teacher"), model, name) if isinstance(made, dict) else None


def teacher_of_store(store: Any, place: Any, model: Classifier, name: str) -> tuple[Classifier, dict[str, Any], str] | None:
    """The teacher that a store was made with, its card and its name; None, after a line that says why, if it is not where it was.

    A card's paths are as they were typed, and seen from another directory something else may lie there. So the store must know the teacher,
    unless it is gone and the path is an absolute one.

    Args:
        place: where the network's card says that the teacher is, if it does; else it is where the store says.
    """
    try:
        plan = plan_of(store, place)
        place = place if isinstance(place, str) or plan is None else plan.teacher_place
        if not isinstance(place, str):
            return None
        teacher, card = matching_teacher(place, model, name)
        if plan is not None and card["sha256"] != plan.teacher:
            raise UserError(f"{place} is not the teacher that {store} was made with")
    except UserError as error:
        print(printable(f"note: without a teacher: {error}; name it by --teacher"), file=sys.stderr, flush=True)
        return None
    return teacher, card, place


def plan_of(store: Any, place: Any) -> Plan | None:
    """The plan of a student's store; None if the card names none, or if that is gone but the teacher's path means the same from everywhere.

    Raises:
        UserError: the store is gone, and the path, seen from here, may be another network's.
    """
    if not isinstance(store, str):
        return None
    try:
        return Store.open(store).plan
    except UserError:
        if isinstance(place, str) and (Path(place).is_absolute() or names_network(place)):
            return None
        raise
