-- What was asked for, and what came of it.
SELECT manifest, count(*) AS cells, count(*) FILTER (status = 'done') AS done, count(*) FILTER (status = 'failed') AS failed,
       count(*) FILTER (status = 'unsupported') AS unsupported, count(*) FILTER (status = 'skipped') AS skipped,
       count(*) FILTER (status = 'missing') AS missing
FROM cells
WHERE manifest IS NOT NULL /* manifests */
GROUP BY manifest
ORDER BY manifest
