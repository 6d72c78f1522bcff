-- What a device says of the worth of learning, of what it sees, and of its power. Null where it does not tell.

ALTER TABLE summaries ADD COLUMN control TEXT; -- JSON object with the names of the wire
ALTER TABLE summaries ADD COLUMN drift REAL;
ALTER TABLE summaries ADD COLUMN watts REAL;
