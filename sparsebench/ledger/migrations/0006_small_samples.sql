-- Comparisons are made again: how sure a bootstrap of few documents is no longer ends with the number of its resamples.
DELETE FROM base.comparisons;
