-- Every score of the named manifests that counts, with the variant's words: what docs/systems.py looks its rows up in.
SELECT manifest, s.model, v.recipe, task, metric, record_id, score, chance, n
FROM scores s
JOIN variants v USING (variant_id)
WHERE manifest IN (SELECT unnest($manifests::VARCHAR[]))
ORDER BY ALL;
