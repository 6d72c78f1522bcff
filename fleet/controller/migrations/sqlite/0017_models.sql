-- Models: packages are large, so that artifacts lie in pieces, each written and read by itself.

CREATE TABLE artifact_pieces (
    digest BLOB NOT NULL,
    at     INTEGER NOT NULL, -- place of its first byte
    bytes  BLOB NOT NULL,
    PRIMARY KEY (digest, at)
) STRICT;

INSERT INTO artifact_pieces (digest, at, bytes) SELECT digest, 0, bytes FROM artifacts;
ALTER TABLE artifacts DROP COLUMN bytes;

-- A name and version always mean the same bytes.
CREATE TABLE models (
    name     TEXT NOT NULL,
    version  INTEGER NOT NULL,
    digest   BLOB NOT NULL REFERENCES artifacts (digest), -- of the package as one file
    manifest BLOB NOT NULL, -- digest of its manifest, by which devices call it
    url      TEXT,          -- where else the file is
    added_at INTEGER NOT NULL,
    PRIMARY KEY (name, version)
) STRICT;

-- Null where the model of the device's own configuration is wanted.
ALTER TABLE desired ADD COLUMN model TEXT;
ALTER TABLE desired ADD COLUMN model_version INTEGER;

-- What is rolled out: a policy or a model, of the name and version that stand in the columns of the policy.
ALTER TABLE rollouts ADD COLUMN kind TEXT NOT NULL DEFAULT 'policy';
