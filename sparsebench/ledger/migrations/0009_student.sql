-- Perplexities are judged anew, by Student's t of log-losses instead of a bootstrap.
DELETE FROM base.comparisons WHERE record_id IN (SELECT record_id FROM base.scores WHERE metric IN ('perplexity', 'pseudo_perplexity'));
DELETE FROM base.intervals WHERE record_id IN (SELECT record_id FROM base.scores WHERE metric IN ('perplexity', 'pseudo_perplexity'));
