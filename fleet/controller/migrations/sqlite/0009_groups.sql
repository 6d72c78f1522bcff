-- What people say of devices, and selectors that have a name.

CREATE TABLE labels (
    device TEXT NOT NULL, -- it may not have been heard of yet
    key    TEXT NOT NULL,
    value  TEXT NOT NULL,
    PRIMARY KEY (device, key)
) STRICT, WITHOUT ROWID;

CREATE INDEX labels_by_value ON labels (key, value);

CREATE TABLE device_groups (
    name       TEXT PRIMARY KEY NOT NULL,
    selector   TEXT NOT NULL,
    changed_at INTEGER NOT NULL,
    changed_by TEXT NOT NULL
) STRICT, WITHOUT ROWID;

ALTER TABLE enrolments ADD COLUMN labels TEXT; -- JSON object: what the device is given when it enrols
