-- The variants of $model that fit, best first: the smallest file, and of files that differ by less than a hundredth of dense the better.
-- A variant fits that has at most $share of dense's bytes, and that loses on no task more than $loss points (percent of a perplexity);
-- where $loss is NULL, one for which no loss is shown, or only losses shown to be below a point, as in the report's first table. `scored`: on as
-- many tasks as any of its kind; what meets the limits and was scored on fewer does not fit. With an $engine, only what was
-- timed there. `speedup`: the largest for a token that is shown, over dense as the run timed it.
WITH timed AS (
    SELECT variant_id, max(speedup) FILTER (verdict = 'faster') AS speedup, arg_max(engine, speedup) FILTER (verdict = 'faster') AS engine
    FROM latency
    WHERE phase IN ('decode', 'forward') AND verdict IS NOT NULL AND ($engine::VARCHAR IS NULL OR engine = $engine)
    GROUP BY variant_id
), whole AS (
    SELECT *, l.tasks = max(l.tasks) OVER (PARTITION BY l.model, l.weights, l.kind) AS scored, 100 * (worst - 1) AS loss
    FROM _losses l
    WHERE l.model = $model
)
SELECT w.variant_id, v.model, v.source, v.dtype, v.seed, v.calibration, v.recipe, w.recipe AS words, w.bytes, w.share, w.loss, w.what, w.lost,
       if(v.recipe LIKE '%gguf%', 'gguf', if(w.kind LIKE '%bits%', 'compressed-tensors', NULL)) AS format, regexp_matches(w.kind, 'skipped|experts') AS ours, w.scored,
       w.cleared, w.tasks, t.speedup, t.engine, t.variant_id IS NOT NULL AS timed,
       w.works AND coalesce(w.share <= $share, true) AND if($loss::DOUBLE IS NULL, NOT w.lost, w.loss <= $loss) AS meets, meets AND w.scored AS fits
FROM whole w
JOIN variants v USING (variant_id)
LEFT JOIN timed t USING (variant_id)
WHERE $engine::VARCHAR IS NULL OR t.variant_id IS NOT NULL
ORDER BY fits DESC, round(w.share, 2), w.worst, w.recipe;
