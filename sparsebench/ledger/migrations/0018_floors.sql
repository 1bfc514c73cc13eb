-- Average precision has intervals by a jackknife of its logit, which also decides what is retained: both are made again.
DELETE FROM base.intervals WHERE record_id IN (SELECT record_id FROM base.scores WHERE metric = 'ap');
DELETE FROM base.comparisons WHERE record_id IN (SELECT record_id FROM base.scores WHERE metric = 'ap');
