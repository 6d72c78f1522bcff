-- What a device that renews its certificate must show, and what it is given again when it asks twice. Certificates that
-- were made before have neither: their devices enrol again.

ALTER TABLE issued ADD COLUMN key BYTEA; -- SHA-256 of its public key
ALTER TABLE issued ADD COLUMN certificate TEXT; -- PEM
