-- What people say of devices, and selectors that have a name.

CREATE TABLE labels (
    device TEXT COLLATE "C" NOT NULL, -- it may not have been heard of yet
    key    TEXT COLLATE "C" NOT NULL,
    value  TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (device, key)
);

CREATE INDEX labels_by_value ON labels (key, value);

CREATE TABLE device_groups (
    name       TEXT COLLATE "C" PRIMARY KEY,
    selector   TEXT NOT NULL,
    changed_at BIGINT NOT NULL,
    changed_by TEXT NOT NULL
);

ALTER TABLE enrolments ADD COLUMN labels TEXT; -- JSON object: what the device is given when it enrols
