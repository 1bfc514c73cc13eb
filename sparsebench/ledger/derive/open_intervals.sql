SELECT record_id, metric, score, n
FROM base.scores
WHERE record_id NOT IN (SELECT record_id FROM base.intervals)
ORDER BY record_id;
