-- Summaries by the hour, which stay when the summaries have become old. How far they were folded into it is in `meta`.

CREATE TABLE hours (
    device         TEXT COLLATE "C" NOT NULL,
    hour           BIGINT NOT NULL, -- its first millisecond
    boot           BYTEA NOT NULL,
    policy         TEXT COLLATE "C" NOT NULL,
    policy_version BIGINT NOT NULL,
    sums           TEXT NOT NULL, -- JSON object: all windows that ended in the hour as one
    PRIMARY KEY (device, hour, boot, policy, policy_version)
);

CREATE INDEX hours_by_time ON hours (hour);
