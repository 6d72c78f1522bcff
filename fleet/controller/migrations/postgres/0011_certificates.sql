-- Every certificate of a device, so that it can be revoked. Those that were made before are known by their device only,
-- in `certificates`.

CREATE TABLE issued (
    serial     BYTEA PRIMARY KEY,
    device     TEXT COLLATE "C" NOT NULL,
    issued_at  BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    revoked_at BIGINT
);

CREATE INDEX issued_by_device ON issued (device);
