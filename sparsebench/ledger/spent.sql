-- What cells took that are done, in one place; where one was done twice there, the later.
SELECT cell_id, last(seconds ORDER BY rowid) AS seconds
FROM base.records
WHERE status = 'done' AND place = $place AND seconds > 0
GROUP BY cell_id
