SELECT input_number, value, label, cluster
FROM (SELECT unnest($record_id::VARCHAR[]) AS record_id, generate_subscripts($record_id::VARCHAR[], 1) AS input_number)
JOIN base.outcomes USING (record_id)
ORDER BY input_number, position;
