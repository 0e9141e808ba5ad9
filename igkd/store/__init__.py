"""The attribution store: for each training image one row with the picture, its label and the teacher's signals.

It is a directory, local or on S3, with Parquet files `part-NNNNN.parquet`, a `plan.json` that says what is being computed and, once all
parts exist, a `manifest.json`; a store without a manifest is unfinished. The teacher's logits of crops are optional and in separate files,
`views-NNNNN.parquet`, with their own plan and manifest, so that they can be added to a finished store. The content of a file depends only
on its plan, and files are written atomically: a part that exists is done, and writing it twice does no harm.

    igkd store verify URI        every byte, id and hash; names what is wrong, exit status 1
    igkd store describe URI      counts, classes, completeness error, sizes
"""

from igkd.base.choices import Forwards
from igkd.store.check import describe, verify
from igkd.store.lease import Lease, hold
from igkd.store.plan import VERSION, Layer, Plan, ViewsPlan, ids_hash, part_name
from igkd.store.read import Store, to_numpy, zero_maps
from igkd.store.write import (
    DamagedPart,
    Entry,
    begun_with,
    check_part,
    discard,
    finish,
    part_bytes,
    remove_unfinished_files,
    sound_manifest,
    start,
    views_plan_of,
    write_part,
)

__all__ = [
    "begun_with",
    "VERSION",
    "DamagedPart",
    "Entry",
    "Forwards",
    "Layer",
    "Lease",
    "Plan",
    "Store",
    "ViewsPlan",
    "check_part",
    "describe",
    "discard",
    "finish",
    "hold",
    "ids_hash",
    "part_bytes",
    "part_name",
    "remove_unfinished_files",
    "sound_manifest",
    "start",
    "to_numpy",
    "verify",
    "views_plan_of",
    "write_part",
    "zero_maps",
]
