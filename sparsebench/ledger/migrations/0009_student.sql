-- Comparisons are made again: perplexities by Student's t of log-losses, and each with the largest loss that it leaves possible.
ALTER TABLE base.comparisons ADD COLUMN loss_at_most DOUBLE;
DELETE FROM base.comparisons;
DELETE FROM base.intervals WHERE record_id IN (SELECT record_id FROM base.scores WHERE metric IN ('perplexity', 'pseudo_perplexity'));
