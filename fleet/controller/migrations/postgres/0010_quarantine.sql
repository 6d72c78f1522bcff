-- Devices that are kept apart, and how often a run of theirs was born again after a later one.

ALTER TABLE devices ADD COLUMN quarantined_at BIGINT; -- null where it is not
ALTER TABLE devices ADD COLUMN quarantine_reason TEXT;
ALTER TABLE devices ADD COLUMN returns BIGINT NOT NULL DEFAULT 0;
ALTER TABLE devices ADD COLUMN returns_since BIGINT NOT NULL DEFAULT 0;
