"""The tables of an index, and the way from an older format to this one."""

import os
import sqlite3

from vlm.index.dates import is_calendar_time
from vlm.index.paths import normalized_path
from vlm.index.records import ACCESS_REASONS

FORMAT = 2
SCHEMA = """
CREATE TABLE model (
    id INTEGER PRIMARY KEY, fingerprint TEXT NOT NULL UNIQUE, name TEXT NOT NULL,
    embed_dim INTEGER NOT NULL, generation INTEGER NOT NULL DEFAULT 0, source TEXT, used INTEGER NOT NULL DEFAULT 0);
CREATE TABLE content (
    id INTEGER PRIMARY KEY, digest BLOB NOT NULL UNIQUE, size INTEGER NOT NULL,
    width INTEGER NOT NULL, height INTEGER NOT NULL, taken TEXT);
CREATE INDEX content_size ON content (size);
CREATE TABLE file (
    path BLOB PRIMARY KEY, size INTEGER NOT NULL, mtime INTEGER NOT NULL, content INTEGER REFERENCES content,
    reason TEXT, detail TEXT, missing INTEGER NOT NULL DEFAULT 0, reader TEXT, normalized TEXT) WITHOUT ROWID;
CREATE INDEX file_content ON file (content);
CREATE TABLE vector (
    model INTEGER NOT NULL REFERENCES model, row INTEGER NOT NULL, content INTEGER NOT NULL REFERENCES content,
    PRIMARY KEY (model, row), UNIQUE (model, content)) WITHOUT ROWID;
CREATE TABLE root (path BLOB PRIMARY KEY) WITHOUT ROWID;
"""
_ADDED_IN_2 = """
ALTER TABLE model ADD COLUMN source TEXT;
ALTER TABLE model ADD COLUMN used INTEGER NOT NULL DEFAULT 0;
ALTER TABLE file ADD COLUMN reader TEXT;
ALTER TABLE file ADD COLUMN normalized TEXT;
CREATE TABLE root (path BLOB PRIMARY KEY) WITHOUT ROWID;
"""
_OLD_REASONS = {"not a picture": "not an image"}


def upgrade(connection: sqlite3.Connection) -> None:
    """Bring a database of format 1 to `FORMAT`, inside the transaction of the caller.

    Format 1 stored reasons of access and dates that no calendar has, and knew no roots.
    """
    for statement in _ADDED_IN_2.split(";"):
        connection.execute(statement)
    access = ", ".join(f"'{reason}'" for reason in sorted(ACCESS_REASONS))
    connection.execute(f"DELETE FROM file WHERE content IS NULL AND reason IN ({access})")
    connection.executemany("UPDATE file SET reason = ? WHERE reason = ?", [(b, a) for a, b in _OLD_REASONS.items()])
    dates = connection.execute("SELECT DISTINCT taken FROM content WHERE taken IS NOT NULL").fetchall()
    wrong = [(date,) for (date,) in dates if not is_calendar_time(date)]
    connection.executemany("UPDATE content SET taken = NULL WHERE taken = ?", wrong)
    paths = [os.fsdecode(path) for (path,) in connection.execute("SELECT path FROM file")]
    composed = [(normal, os.fsencode(path)) for path in paths if (normal := normalized_path(path)) is not None]
    connection.executemany("UPDATE file SET normalized = ? WHERE path = ?", composed)
    root = os.path.commonpath(paths) if paths and all(map(os.path.isabs, paths)) else os.sep
    if root != os.sep and len(paths) > 1:
        connection.execute("INSERT INTO root (path) VALUES (?)", [os.fsencode(root)])
