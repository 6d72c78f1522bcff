-- Who may do what. Secrets are kept as SHA-256 digests only: they are 256 random bits, so that no slow hash is needed.

CREATE TABLE tokens (
    id         INTEGER PRIMARY KEY NOT NULL,
    name       TEXT NOT NULL UNIQUE, -- never used again, so that the audit log stays true
    role       TEXT NOT NULL,
    digest     BLOB NOT NULL UNIQUE,
    created_at INTEGER NOT NULL,
    created_by TEXT NOT NULL,
    expires_at INTEGER,
    revoked_at INTEGER,
    used_at    INTEGER -- to some minutes
) STRICT;

-- Logins of browsers. They end with their token.
CREATE TABLE sessions (
    digest     BLOB PRIMARY KEY NOT NULL,
    token      INTEGER NOT NULL REFERENCES tokens (id),
    expires_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
