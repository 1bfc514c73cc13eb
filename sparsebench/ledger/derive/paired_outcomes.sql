-- Only documents that both were shown, word for word.
SELECT s.value AS variant, d.value AS dense, s.label AS variant_label, d.label, coalesce(s.cluster, d.cluster) AS cluster
FROM base.outcomes s
JOIN base.outcomes d ON s.doc_id = d.doc_id AND s.doc_hash IS NOT DISTINCT FROM d.doc_hash
WHERE s.record_id = $record_id AND d.record_id = $dense_id
ORDER BY d.position;
