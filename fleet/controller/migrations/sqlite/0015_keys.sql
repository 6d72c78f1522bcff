-- The keys that sign desired states; their secret parts are in a file. And which of them a device says that it trusts.

CREATE TABLE keys (
    public     BLOB PRIMARY KEY NOT NULL,
    number     INTEGER NOT NULL, -- in the order in which they were made
    added_at   INTEGER NOT NULL,
    added_by   TEXT NOT NULL,
    revoked_at INTEGER
) STRICT, WITHOUT ROWID;

ALTER TABLE devices ADD COLUMN trusts TEXT; -- JSON list of public keys, hexadecimal; null where it does not tell
