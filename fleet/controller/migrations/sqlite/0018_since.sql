-- The generation since which the policy, or the model, is the one that a desired state names; null in those from before.
ALTER TABLE desired ADD COLUMN policy_since INTEGER;
ALTER TABLE desired ADD COLUMN model_since INTEGER;

-- How often a run has told of its birth, and when the controller heard of it last.
ALTER TABLE runs ADD COLUMN told INTEGER NOT NULL DEFAULT 0;
ALTER TABLE runs ADD COLUMN noted_at INTEGER NOT NULL DEFAULT 0;

-- When a piece came: those of an upload that broke off are removed.
ALTER TABLE artifact_pieces ADD COLUMN kept_at INTEGER NOT NULL DEFAULT 0;
