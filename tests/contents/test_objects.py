"""What the extension consists of, as its users see it."""

from __future__ import annotations

import os
from pathlib import Path

from helpers import rows

from tools import reference

GOLDEN = Path(__file__).with_name("objects.txt")


def test_public_objects_are_as_reviewed(db):
    """Any change of the interface shows here: rewrite the file with `make reference` and review its diff."""
    found = "".join(
        f"{line}\n" for (line,) in rows(db, Path(__file__).with_name("objects.sql").read_text())
    )
    if "RAGSTONE_REWRITE_GOLDEN" in os.environ:
        GOLDEN.write_text(found)
    assert found == GOLDEN.read_text()


def test_every_public_object_is_explained(db):
    assert (
        rows(
            db,
            """select p.oid::regprocedure::text from pg_proc p
           where p.pronamespace = 'rag'::regnamespace and p.proname !~ '^_' and obj_description(p.oid, 'pg_proc') is null
           union all
           select c.oid::regclass::text from pg_class c
           where c.relnamespace = 'rag'::regnamespace and c.relname !~ '^_' and c.relkind in ('r', 'p', 'v', 'c')
             and c.relispartition is false
             and coalesce(obj_description(c.oid, 'pg_class'), obj_description(c.reltype, 'pg_type')) is null""",
        )
        == []
    )


def test_the_reference_says_what_the_catalog_says(db):
    """Rewrite it with `make reference`."""
    found = reference.reference(db)
    if "RAGSTONE_REWRITE_GOLDEN" in os.environ:
        reference.TARGET.write_text(found)
    assert found == reference.TARGET.read_text()
