-- How devices get their certificates: a token holds once and for a while; only its digest is kept.

CREATE TABLE enrolments (
    digest     BLOB PRIMARY KEY NOT NULL,
    device     TEXT,    -- the only device that it is for; null for any that has no certificate yet
    created_at INTEGER NOT NULL,
    created_by TEXT NOT NULL,
    expires_at INTEGER NOT NULL,
    used_at    INTEGER,
    used_by    TEXT
) STRICT, WITHOUT ROWID;

CREATE TABLE certificates (
    device     TEXT PRIMARY KEY NOT NULL,
    issued_at  INTEGER NOT NULL,
    expires_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
