-- Of right-or-wrong outcomes of which fewer are better, gained and lost had changed places, and the loss left possible was that of the
-- wrong side. An average precision of 0 or 1 has no interval; what is retained hangs on the dense model's. All are made again.
DELETE FROM base.comparisons
WHERE NOT higher_is_better AND gained IS NOT NULL
   OR dense_record_id IN (SELECT record_id FROM base.intervals WHERE method LIKE 'jackknife%' AND low = high);
DELETE FROM base.intervals WHERE method LIKE 'jackknife%' AND low = high;
