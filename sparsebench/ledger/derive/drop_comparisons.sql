DELETE FROM base.comparisons
WHERE (record_id, dense_record_id) IN (SELECT (unnest($record_id::VARCHAR[]), unnest($dense_id::VARCHAR[])));
