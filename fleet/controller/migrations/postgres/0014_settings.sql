-- The settings of a desired state beside its policy. Null where the device's own hold.

ALTER TABLE desired ADD COLUMN settings TEXT; -- JSON object
