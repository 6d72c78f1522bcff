-- Summaries by the hour, which stay when the summaries have become old. How far they were folded into it is in `meta`.

CREATE TABLE hours (
    device         TEXT NOT NULL,
    hour           INTEGER NOT NULL, -- its first millisecond
    boot           BLOB NOT NULL,
    policy         TEXT NOT NULL,
    policy_version INTEGER NOT NULL,
    sums           TEXT NOT NULL, -- JSON object: all windows that ended in the hour as one
    PRIMARY KEY (device, hour, boot, policy, policy_version)
) STRICT, WITHOUT ROWID;

CREATE INDEX hours_by_time ON hours (hour);
