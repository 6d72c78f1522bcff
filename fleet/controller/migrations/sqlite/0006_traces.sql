-- Pieces of exit traces that devices share, and what was foreseen of a rollout by replaying its policy on them.

CREATE TABLE traces (
    id            INTEGER PRIMARY KEY NOT NULL,
    device        TEXT NOT NULL,
    model         TEXT NOT NULL,
    model_version INTEGER NOT NULL,
    model_digest  BLOB NOT NULL,
    frames        INTEGER NOT NULL,
    received_at   INTEGER NOT NULL,
    digest        BLOB NOT NULL UNIQUE, -- of its bytes: what comes twice is kept once
    bytes         BLOB NOT NULL
) STRICT;

CREATE INDEX traces_by_device ON traces (device, id);

ALTER TABLE rollouts ADD COLUMN forecast TEXT; -- JSON; null where there was nothing to replay on
