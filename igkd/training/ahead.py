"""What is known of a pipeline's store and students before its teacher is trained, and checked then rather than hours later."""

import contextlib
from collections.abc import Sequence
from dataclasses import replace

from igkd.base.errors import UserError
from igkd.base.storage import absolute
from igkd.config.distill import DistillConfig
from igkd.config.precompute import PrecomputeConfig
from igkd.config.recipes import made_for
from igkd.images.open import open_images
from igkd.networks.network import Classifier
from igkd.store import Store, views
from igkd.store.compute import make_plan
from igkd.store.engine import Begun
from igkd.training.identity import with_logits
from igkd.training.student_checks import check_counts, check_fits, check_network

ENGINE: Begun = ("torch", "riemann_middle")
"""Stands for the engine of the maps, which is chosen by trying the trained teacher."""


def check_students(asked: PrecomputeConfig, teacher: Classifier, students: Sequence[DistillConfig]) -> None:
    """Check that a store can be made as asked for, and that students can then be trained from it.

    Args:
        teacher: with weights of any kind, which are not looked at.

    Raises:
        UserError: something does not fit; the message says what to do.
    """
    plan, selection = make_plan(asked, open_images(asked.images), teacher, teacher_sha="", begun=ENGINE)
    planned = None
    if asked.views != "none":
        planned = views.make_views_plan(asked.views, asked.padding, plan, "torch", asked.crop, asked.top)
    there = None
    with contextlib.suppress(UserError):  # it is not made yet
        there = Store.open(absolute(asked.store)).fingerprint()
    # Runs that differ by their seed alone are alike.
    for one in dict.fromkeys(replace(with_logits(one, planned is not None), seed=0, out="students") for one in students):
        check_network(one, plan)
        check_fits(one, plan, planned)
        check_counts(one, plan.rows, int(selection.validation.sum()))
        if made_for(one.recipe) not in (None, there):
            raise UserError(
                f"the recipe {one.recipe} was found with another store than this pipeline makes; "
                'tune on that once it is there, or delete "made" from the file to use it all the same'
            )
