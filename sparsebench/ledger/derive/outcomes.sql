SELECT whose, value, label, cluster
FROM (SELECT unnest($record_id::VARCHAR[]) AS record_id, generate_subscripts($record_id::VARCHAR[], 1) AS whose)
JOIN base.outcomes USING (record_id)
ORDER BY whose, position;
