-- Only documents that both models were shown, with the same text.
SELECT input_number, s.value AS variant, d.value AS dense, s.label AS variant_label, d.label, coalesce(s.cluster, d.cluster) AS cluster
FROM (SELECT unnest($record_id::VARCHAR[]) AS record_id, unnest($dense_id::VARCHAR[]) AS dense_id, generate_subscripts($record_id::VARCHAR[], 1) AS input_number) p
JOIN base.outcomes s ON s.record_id = p.record_id
JOIN base.outcomes d ON d.record_id = p.dense_id AND s.doc_id = d.doc_id AND s.doc_hash IS NOT DISTINCT FROM d.doc_hash
ORDER BY input_number, d.position, s.position;
