-- Cells without a result, by reason.
SELECT stage, status, model, weights, label, reason, count(DISTINCT cell_id) AS cells, max(started_at)::DATE AS day
FROM failures
WHERE status IS NOT NULL /* manifests */
GROUP BY stage, status, model, weights, label, reason
ORDER BY status, stage, model, label, reason
