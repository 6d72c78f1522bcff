-- Every certificate of a device, so that it can be revoked. Those that were made before are known by their device only,
-- in `certificates`.

CREATE TABLE issued (
    serial     BLOB PRIMARY KEY NOT NULL,
    device     TEXT NOT NULL,
    issued_at  INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    revoked_at INTEGER
) STRICT, WITHOUT ROWID;

CREATE INDEX issued_by_device ON issued (device);
