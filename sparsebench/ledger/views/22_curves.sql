CREATE OR REPLACE VIEW curves AS
WITH scored AS (
    SELECT s.*, v.retained, v.retained_low, v.retained_high, v.verdict, way, coalesce(r.parameters_removed, 0) > 0 AS resized,
           s.pattern LIKE '%:%' AS nm,
           -- True for a score of some documents where the whole task was scored as well.
           s.limited AND bool_or(NOT s.limited) OVER (PARTITION BY s.variant_id, s.task) AS partly,
           concat(model_label(s.model, s.weights), chr(10), s.task,
                  CASE WHEN s.scale = 'perplexity' THEN concat(', ', if(s.subset = 'first', 'first ', ''), s.n, ' windows',
                      if(s.subset = 'drawn', ' drawn', ''))
                       ELSE concat(' (', s.metric, if(s.higher_is_better, '', ', lower is better'),
                           coalesce(format(', {} examples', s.num_fewshot), ''),
                           CASE s.subset WHEN 'first' THEN ', first ' || s.n WHEN 'drawn' THEN concat(', ', s.n, ' drawn')
                               ELSE '' END, ')') END) AS panel
    FROM scores s
    JOIN ways USING (variant_id)
    LEFT JOIN vs_dense v ON v.record_id = s.record_id AND v.manifest = s.manifest
    LEFT JOIN (SELECT variant_id, parameters_removed FROM variants) r ON r.variant_id = s.variant_id
    -- A perplexity over other tokens does not compare with the dense model's.
    WHERE s.weights <> 'random' AND NOT (s.scale = 'perplexity' AND coalesce(v.pairs < s.n, false))
), kept AS (
    -- A sample is left out where the whole task was scored for each of its variants.
    FROM scored QUALIFY method = 'dense' OR bool_or(NOT partly AND method <> 'dense') OVER (PARTITION BY panel)
), named AS (
    -- N:M patterns, which fix the sparsity, share a line, unless several fix the same one.
    SELECT *,
           method_label(method, if(nm, '', granularity),
                        CASE WHEN NOT nm OR count(DISTINCT pattern)
                             OVER (PARTITION BY manifest, panel, method, nm, way, sparsity) > 1
                        THEN pattern ELSE 'N:M' END) || way AS how
    FROM kept
), dense AS (
    -- One dense score a panel: those of other machines differ a little, and would be drawn beside it. It is the newest of those that
    -- variants were compared with.
    SELECT n.* REPLACE (o.score AS score, o.low AS low, o.high AS high)
    FROM named n
    JOIN (FROM (SELECT *, count(*) FILTER (method <> 'dense') OVER (PARTITION BY manifest, panel) > 0 AS compared FROM named)
        WHERE method = 'dense'
          QUALIFY row_number() OVER (PARTITION BY panel ORDER BY compared DESC, started_at DESC, manifest) = 1) o USING (panel)
    WHERE n.method = 'dense'
), lines AS (
    SELECT s.*, d.score AS dense, s.how || if(count(DISTINCT s.seed) OVER (PARTITION BY s.scale = 'perplexity') > 1, ', seed ' || s.seed, '')
        AS line, regexp_matches(s.method, '^random(\+|$)') AS bound
    FROM named s
    JOIN dense d USING (manifest, panel)
    WHERE s.method <> 'dense'
), points AS (
    FROM lines
    UNION ALL BY NAME
    -- Every line of sparsities begins at the dense model.
    SELECT d.* EXCLUDE (resized) REPLACE (CASE WHEN chance IS NOT NULL AND low IS NOT NULL
               AND NOT dense_at_chance THEN 1.0 END AS retained), d.score AS dense, coalesce(l.line, 'dense') AS line,
           coalesce(l.bound, false) AS bound, coalesce(l.resized, false) AS resized
    FROM dense d
    LEFT JOIN (SELECT DISTINCT manifest, panel, line, bound, resized FROM lines WHERE sparsity > 0) l USING (manifest, panel)
    WHERE NOT d.partly OR (d.manifest, d.panel) IN (SELECT (manifest, panel) FROM lines)
)
SELECT manifest, variant_id, model, weights, method, granularity, pattern, sparsity, seed, line, bound, resized, place, task,
       metric, higher_is_better, scale, limited, n, panel,
       score, collapsed, low, high, chance, dense_at_chance, dense, retained, retained_low, retained_high, verdict, started_at
FROM points
JOIN (
    -- Lines that most panels show come first, so that they keep their looks when rarer lines change.
    SELECT line, row_number() OVER (ORDER BY bool_or(bound), count(DISTINCT panel) DESC, line) - 1 AS place
    FROM points GROUP BY line
) USING (line)
QUALIFY row_number() OVER (PARTITION BY panel, line, sparsity ORDER BY started_at DESC, manifest) = 1;

-- Curves of pruned models only, each method by one name in all panels. A method that was calibrated in several ways shows the usual one,
-- and another where that has sparsities of its own (figure calibration has all). A line begins at the dense model, where its first
-- sparsity is at most 50%. Points of N:M patterns stand `apart`: no line joins them.
CREATE OR REPLACE VIEW _pruned_curves AS
WITH pruned AS (
    SELECT panel, c.line, method, granularity, pattern LIKE '%:%' AS nm, sparsity, calibrated, text_number, inputs
    FROM curves c
    JOIN ways USING (variant_id)
    WHERE NOT resized AND method <> 'dense' AND variant_id NOT IN (FROM _more_than_zeros)
), ranked AS (
    SELECT *, rank() OVER (PARTITION BY panel, method, granularity, nm ORDER BY calibrated, text_number, inputs) AS place FROM pruned
), usual AS (
    SELECT panel, line, method_label(method, if(nm, '', granularity), if(nm, 'N:M', 'unstructured')) || min(calibrated) AS short
    FROM (SELECT *, min(place) OVER (PARTITION BY panel, method, granularity, nm, sparsity) = place AS first FROM ranked)
    GROUP BY panel, line, method, granularity, nm
    HAVING bool_or(first)
), named AS (
    SELECT panel, line, if(count(*) OVER (PARTITION BY panel, short) = 1, short, line) AS name FROM usual
)
SELECT c.* REPLACE (name AS line, min(place) OVER (PARTITION BY name) AS place),
       bool_or(pattern LIKE '%:%') OVER (PARTITION BY panel, name) AS apart
FROM curves c
JOIN named USING (panel, line)
WHERE NOT resized
-- No line leads from dense across half of the axis.
QUALIFY sparsity > 0 OR NOT apart AND min(sparsity) FILTER (sparsity > 0) OVER (PARTITION BY panel, name) <= 0.5;

COMMENT ON VIEW curves IS 'scores as figures draw them: one line per method, which begins at the dense model; the newest where several manifests have a point';
COMMENT ON COLUMN curves.line IS 'name of the line: method, granularity or pattern, and what tells it from similar lines (inputs, text, seed)';
COMMENT ON COLUMN curves.bound IS 'true for random masks, the random baseline';
COMMENT ON COLUMN curves.resized IS 'true for variants with fewer parameters, whose axis is not sparsity (figure shapes)';
COMMENT ON COLUMN curves.place IS 'number of the line, from 0: the same in every panel, so that figures give it the same looks';
COMMENT ON COLUMN curves.metric IS 'metric, as in scores';
COMMENT ON COLUMN curves.scale IS 'what kind of number the score is, as in scores';
COMMENT ON COLUMN curves.panel IS 'the panel that the line belongs to: model and task, with the metric and how much was scored';
COMMENT ON COLUMN curves.score IS 'the metric''s value, in its own unit, as in scores';
COMMENT ON COLUMN curves.collapsed IS 'true where the score is beyond metrics.collapsed_above, as in scores';
COMMENT ON COLUMN curves.chance IS 'score of a model without skill';
COMMENT ON COLUMN curves.dense IS 'the dense model''s score';
COMMENT ON COLUMN curves.retained IS '(score - chance) / (dense - chance); NULL where the dense model''s own interval reaches chance';
COMMENT ON COLUMN curves.retained_low IS 'lower end of the 95% interval of retained, as in vs_dense';
COMMENT ON COLUMN curves.retained_high IS 'upper end of that interval';
