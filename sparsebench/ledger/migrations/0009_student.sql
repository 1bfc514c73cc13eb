-- Comparisons are made again: perplexities by Student's t of log-losses, each with the largest loss that it leaves possible, and with the
-- score of no skill that it holds both against.
ALTER TABLE base.comparisons RENAME COLUMN recovery TO retained;
ALTER TABLE base.comparisons RENAME COLUMN recovery_low TO retained_low;
ALTER TABLE base.comparisons RENAME COLUMN recovery_high TO retained_high;
ALTER TABLE base.comparisons ADD COLUMN loss_at_most DOUBLE;
ALTER TABLE base.comparisons ADD COLUMN chance DOUBLE;
DELETE FROM base.comparisons;
DELETE FROM base.intervals WHERE record_id IN (SELECT record_id FROM base.scores WHERE metric IN ('perplexity', 'pseudo_perplexity'));
