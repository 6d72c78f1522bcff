-- The keys that sign desired states; their secret parts are in a file. And which of them a device says that it trusts.

CREATE TABLE keys (
    public     BYTEA PRIMARY KEY,
    number     BIGINT NOT NULL, -- in the order in which they were made
    added_at   BIGINT NOT NULL,
    added_by   TEXT NOT NULL,
    revoked_at BIGINT
);

ALTER TABLE devices ADD COLUMN trusts TEXT; -- JSON list of public keys, hexadecimal; null where it does not tell
