-- Several cameras of a device, and what runs its stages; null where the device has one camera, or does not tell.

ALTER TABLE summaries ADD COLUMN hurried INTEGER NOT NULL DEFAULT 0;
ALTER TABLE summaries ADD COLUMN cameras TEXT; -- JSON list of the cameras' parts, with the names of the wire
ALTER TABLE summaries ADD COLUMN engines TEXT; -- JSON list: one text per stage
