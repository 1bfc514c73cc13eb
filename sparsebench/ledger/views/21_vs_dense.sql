CREATE OR REPLACE VIEW vs_dense AS
WITH paired AS (
    SELECT s.*, d.score AS dense_score, s.collapsed AND NOT d.collapsed AS fallen, c.n AS pairs, c.clusters, c.difference,
           c.low AS difference_low,
           c.high AS difference_high, c.p, c.gained, c.lost, c.detectable, c.retained, c.retained_low, c.retained_high,
           c.method AS test, c.loss_at_most,
           -- The difference is over the windows that both read: it gives a ratio to the whole score only where these are all.
           if(s.scale = 'perplexity' AND c.n = s.n AND c.n = d.n, d.score, NULL) AS whole,
           -- A task that cannot tell dense from no skill tests nothing.
           if(s.separable IS false, NULL, c.p) AS counted, if(s.scale = 'perplexity', 0.02 * d.score, 0.01) AS margin,
           -_goodness(c.difference, s.higher_is_better) AS loss
    FROM scores s
    JOIN _scores d ON d.method = 'dense' AND s.method <> 'dense' AND d.manifest = s.manifest AND d.model = s.model
                 AND d.dtype = s.dtype AND d.task = s.task AND d.metric = s.metric AND _same(d.settings) = _same(s.settings)
    LEFT JOIN base.comparisons c ON c.record_id = s.record_id AND c.dense_record_id = d.record_id
    -- One dense score for each: of the same workspace where there is one, of the same machine where there is one, else calculated in the same precision, else the one that counts.
    QUALIFY row_number() OVER (PARTITION BY s.manifest, s.record_id
                               ORDER BY d.origin IS DISTINCT FROM s.origin, d.machine IS DISTINCT FROM s.machine,
                                   d.protocol ->> '$.dtype' IS DISTINCT FROM s.protocol ->> '$.dtype', d.choice,
                                   c.record_id IS NULL, d.record_id) = 1
), ranked AS (
    -- Benjamini and Hochberg (J. of the Royal Statistical Society B 57, 289-300, 1995): p times the tests over its rank.
    SELECT *, counted * count(counted) OVER (PARTITION BY manifest) / count(counted) OVER (PARTITION BY manifest ORDER BY counted) AS discovery
    FROM paired
)
SELECT manifest, variant_id, model, family, weights, method, granularity, pattern, sparsity, seed, calibration, dtype, task,
       metric, score, dense_score, chance, difference, difference_low AS low, difference_high AS high, pairs, clusters, gained, lost,
       p, count(counted) OVER (PARTITION BY manifest, variant_id) AS tests,
       _holm(counted, list(counted) OVER (PARTITION BY manifest, variant_id)) AS p_holm,
       CASE WHEN counted IS NOT NULL THEN least(1, min(discovery) OVER (PARTITION BY manifest ORDER BY counted DESC)) END AS q,
       count(counted) OVER (PARTITION BY manifest) AS q_tests,
       if(separable IS false, NULL, retained) AS retained, if(separable IS false, NULL, retained_low) AS retained_low,
       if(separable IS false, NULL, retained_high) AS retained_high,
       _overridden(_verdict(difference, p_holm, higher_is_better), separable, fallen, at_chance) AS verdict,
       detectable, loss_at_most, _loses_less(loss_at_most, margin) AS loses_less,
       CASE WHEN verdict NOT IN ('invalid', 'worse', 'collapsed', 'at chance')
           THEN _documents_to_clear(pairs, clusters - 1, loss, loss_at_most, margin) END AS documents_to_clear,
       1 + difference / whole AS ratio, 1 + difference_low / whole AS ratio_low, 1 + difference_high / whole AS ratio_high,
       floor, test, limited, record_id
FROM ranked;

-- Whether a score is of no use, on a task on which the dense model is above chance.
CREATE OR REPLACE MACRO _useless(collapsed, at_chance, retained_high, ratio) AS
    coalesce(collapsed, false) OR coalesce(at_chance, false) OR coalesce(retained_high < 0.05, false) OR coalesce(ratio > 3, false);

-- Variants of no use, however small or fast: collapsed, at chance where the dense model is not, shown to keep less than 5% of its skill,
-- or above three times its perplexity; and those without a score that have more zeros than one of these, made in the same way.
CREATE OR REPLACE VIEW _ruined AS
WITH shown AS (
    SELECT DISTINCT s.variant_id
    FROM scores s
    LEFT JOIN vs_dense v USING (manifest, record_id)
    WHERE s.method <> 'dense' AND _useless(s.collapsed, s.at_chance AND NOT s.dense_at_chance,
        if(s.dense_at_chance, NULL, v.retained_high), v.ratio)
), made AS (
    SELECT DISTINCT variant_id, model, weights, line, sparsity FROM cells JOIN ways USING (variant_id) WHERE pattern = 'unstructured'
)
FROM shown
UNION
SELECT m.variant_id
FROM made m
JOIN (FROM made JOIN shown USING (variant_id)) r USING (model, weights, line)
WHERE m.sparsity > r.sparsity AND m.variant_id NOT IN (SELECT variant_id FROM scores);

COMMENT ON VIEW vs_dense IS 'each sparsified variant against its dense model on the same documents, one row per variant and task';
COMMENT ON COLUMN vs_dense.metric IS 'metric, as in scores';
COMMENT ON COLUMN vs_dense.score IS 'the variant''s score';
COMMENT ON COLUMN vs_dense.dense_score IS 'the dense model''s score on the same task with the same settings, from the same workspace and machine where there is one';
COMMENT ON COLUMN vs_dense.chance IS 'score of a model without skill';
COMMENT ON COLUMN vs_dense.difference IS 'variant minus dense over the documents of both, in the metric''s unit';
COMMENT ON COLUMN vs_dense.low IS 'lower end of the 95% interval of difference (0/1 outcomes: Newcombe, paired; perplexity: Student''s t; else paired bootstrap); clusters are resampled, or discounted, as a whole';
COMMENT ON COLUMN vs_dense.high IS 'upper end of the 95% interval of difference';
COMMENT ON COLUMN vs_dense.pairs IS 'documents that both were shown';
COMMENT ON COLUMN vs_dense.clusters IS 'contexts (such as passages) of those documents; equals pairs where each document has its own';
COMMENT ON COLUMN vs_dense.gained IS 'documents that only the variant gets right (0/1 outcomes)';
COMMENT ON COLUMN vs_dense.lost IS 'documents that only the dense model gets right (0/1 outcomes)';
COMMENT ON COLUMN vs_dense.p IS 'two-sided p value (0/1 outcomes: exact McNemar, in clusters the exact sign-flip test; perplexity: paired t; else paired bootstrap)';
COMMENT ON COLUMN vs_dense.p_holm IS 'p after Holm''s correction across the tasks of this variant; NULL where the task is invalid and counts in no family';
COMMENT ON COLUMN vs_dense.retained IS '(score - chance) / (dense_score - chance); NULL where the dense model''s own interval reaches chance';
COMMENT ON COLUMN vs_dense.retained_low IS 'lower end of the 95% interval of retained (0/1 outcomes: MOVER, Newcombe''s interval solved for the ratio; perplexity: Fieller; else paired bootstrap); NULL where the interval is unbounded';
COMMENT ON COLUMN vs_dense.retained_high IS 'upper end of the 95% interval of retained';
COMMENT ON COLUMN vs_dense.verdict IS 'better, worse or no difference detected, at p_holm < 0.05; collapsed where the score is beyond metrics.collapsed_above and the dense model''s is not, whatever the test says; at chance where neither a difference nor skill is shown (scores.at_chance); invalid where the dense model is not shown to be better than one without skill; NULL where nothing could be compared';
COMMENT ON COLUMN vs_dense.detectable IS 'smallest true difference, in the metric''s unit, that such a sample shows with a power of 80% at p < 0.05 before Holm''s correction; NULL where none is large enough';
COMMENT ON COLUMN vs_dense.tests IS 'tasks of this variant that were tested: the family that p_holm is corrected for';
COMMENT ON COLUMN vs_dense.q IS 'p after Benjamini and Hochberg''s correction across all tests of the manifest: of the differences called at q < 0.05, at most one in twenty is expected to be chance';
COMMENT ON COLUMN vs_dense.q_tests IS 'tests of the manifest: the family that q is corrected for';
COMMENT ON COLUMN vs_dense.loss_at_most IS 'largest loss that the documents leave possible (one-sided 95%), in the metric''s unit';
COMMENT ON COLUMN vs_dense.loses_less IS 'whether the variant is shown to lose less than one point of a score, or 2% of a perplexity (one-sided 5%); false means that such a loss is not ruled out';
COMMENT ON COLUMN vs_dense.documents_to_clear IS 'documents that make loses_less true with a power of 80%, if the true loss is the one observed; NULL where it is true already, where the observed loss reaches the margin, and where the verdict is a loss or invalid';
COMMENT ON COLUMN vs_dense.ratio IS 'perplexity over the dense model''s, where both read the same windows; NULL elsewhere, and for other metrics';
COMMENT ON COLUMN vs_dense.ratio_low IS 'lower end of the 95% interval of ratio';
COMMENT ON COLUMN vs_dense.ratio_high IS 'upper end of the 95% interval of ratio';
COMMENT ON COLUMN vs_dense.floor IS 'best score without skill (see floors); NULL where none was measured';
COMMENT ON COLUMN vs_dense.test IS 'how difference, interval and p were computed';
COMMENT ON COLUMN vs_dense.limited IS 'true where the task has more documents than were scored';
