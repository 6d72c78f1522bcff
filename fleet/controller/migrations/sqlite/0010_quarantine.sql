-- Devices that are kept apart, and how often a run of theirs was born again after a later one.

ALTER TABLE devices ADD COLUMN quarantined_at INTEGER; -- null where it is not
ALTER TABLE devices ADD COLUMN quarantine_reason TEXT;
ALTER TABLE devices ADD COLUMN returns INTEGER NOT NULL DEFAULT 0;
ALTER TABLE devices ADD COLUMN returns_since INTEGER NOT NULL DEFAULT 0;
