-- The quality gate: whether a variant is good enough for its speed to stand in a headline. Each task counts on its largest sample. A
-- variant without a score fails where one made in the same way with fewer zeros fails.
CREATE OR REPLACE VIEW gate AS
WITH judged AS (
    SELECT s.variant_id, s.model, s.weights, s.task, v.retained, v.ratio
    FROM scores s
    JOIN vs_dense v USING (manifest, record_id)
    WHERE NOT s.dense_at_chance
    QUALIFY row_number() OVER (PARTITION BY s.variant_id, s.task ORDER BY s.n DESC, s.manifest, s.record_id) = 1
), scored AS (
    -- Manifests may name one checkpoint differently.
    SELECT variant_id, min(model) AS model, any_value(weights) AS weights, count(DISTINCT _benchmark(task)) AS tasks,
           min(retained) AS retained, arg_min(task, (retained, task)) FILTER (retained IS NOT NULL) AS weakest,
           max(ratio) AS ratio, coalesce(min(retained) >= 0.95, true) AND coalesce(max(ratio) <= 1.1, true) AS passes
    FROM judged
    WHERE coalesce(retained, ratio) IS NOT NULL
    GROUP BY variant_id
), made AS (
    SELECT DISTINCT variant_id, model, weights, line, sparsity FROM cells JOIN ways USING (variant_id) WHERE pattern = 'unstructured'
)
SELECT *, variant_id IN (FROM _ruined) AS ruined
FROM (
    FROM scored
    UNION ALL BY NAME
    SELECT m.variant_id, min(m.model) AS model, any_value(m.weights) AS weights, 0 AS tasks, false AS passes
    FROM made m
    JOIN (FROM made SEMI JOIN (FROM scored WHERE NOT passes) USING (variant_id)) f USING (model, weights, line)
    WHERE m.sparsity > f.sparsity AND m.variant_id NOT IN (SELECT variant_id FROM scored)
    GROUP BY m.variant_id
);

COMMENT ON VIEW gate IS 'the quality gate, one row per variant: one that does not pass has no speed in a headline and is grey in figures; a variant that nothing says anything about has no row';
COMMENT ON COLUMN gate.tasks IS 'benchmarks that were scored; 0 where a variant with fewer zeros, made in the same way, fails';
COMMENT ON COLUMN gate.retained IS 'the least share of dense''s skill above chance that is left on a task; NULL where no task has a chance level';
COMMENT ON COLUMN gate.weakest IS 'the task of retained';
COMMENT ON COLUMN gate.ratio IS 'perplexity over the dense model''s; NULL where none was measured on the same windows';
COMMENT ON COLUMN gate.passes IS 'whether retained is at least 0.95 and ratio at most 1.1';
COMMENT ON COLUMN gate.ruined IS 'whether it is of no use, however small or fast: collapsed, at chance where dense is not, shown to keep less than 5% of its skill, or above three times its perplexity';
