-- The guard of the learner; all of them null where the device does not tell. The temperatures stay in `raw`.

ALTER TABLE summaries ADD COLUMN guard_threshold REAL;
ALTER TABLE summaries ADD COLUMN guard_loss REAL;
ALTER TABLE summaries ADD COLUMN guard_loss_bound REAL;
ALTER TABLE summaries ADD COLUMN guard_audits INTEGER;
ALTER TABLE summaries ADD COLUMN guard_promotions INTEGER;
ALTER TABLE summaries ADD COLUMN guard_paused INTEGER;
ALTER TABLE summaries ADD COLUMN guard_contexts INTEGER;
ALTER TABLE summaries ADD COLUMN guard_bytes INTEGER;
