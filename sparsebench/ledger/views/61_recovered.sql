-- What a recovery regained: a variant whose last step trains it, beside its parent.
CREATE OR REPLACE VIEW recovered AS
WITH last AS (
    SELECT variant_id FROM base.steps GROUP BY variant_id HAVING arg_max(step, position) = 'recover'
), pairs AS (
    SELECT DISTINCT r.manifest, r.variant_id, r.model, r.family, r.recipe, r.sparsity, r.task, r.metric, r.higher_is_better, m.scale,
           p.score AS before, r.score AS after, r.dense_score, v.trained_tokens, v.operations, v.seconds / 3600 AS hours, v.joules,
           v.energy_source, r.machine
    FROM results r
    JOIN last USING (variant_id)
    JOIN variants v USING (variant_id)
    JOIN results p ON p.manifest = r.manifest AND p.variant_id = v.parent AND p.task = r.task AND p.metric = r.metric
                AND p.n = r.n AND p.num_fewshot IS NOT DISTINCT FROM r.num_fewshot
    LEFT JOIN metrics m ON m.metric = r.metric
), scaled AS (
    -- A perplexity is an exponential: its loss is taken in logarithms.
    SELECT *, CASE WHEN scale = 'perplexity' THEN ln(before / dense_score) ELSE _goodness(dense_score - before, higher_is_better) END AS loss,
           CASE WHEN scale = 'perplexity' THEN ln(before / after) ELSE _goodness(after - before, higher_is_better) END AS gained
    FROM pairs
)
SELECT manifest, variant_id, model, family, recipe, sparsity, task, metric, higher_is_better, before, after, dense_score,
       if(loss > 0, gained / loss, NULL) AS regained, gained, trained_tokens, operations, hours,
       gained / hours AS recovered_per_hour, joules, energy_source, machine
FROM scaled
ORDER BY manifest, model, task, recipe;

COMMENT ON VIEW recovered IS 'what a recovery step regained: one row per recovered variant and task, where its parent was measured too';
COMMENT ON COLUMN recovered.recipe IS 'all steps of the variant; the last is the recovery';
COMMENT ON COLUMN recovered.metric IS 'metric, as in scores';
COMMENT ON COLUMN recovered.before IS 'the parent''s score';
COMMENT ON COLUMN recovered.after IS 'the recovered variant''s score';
COMMENT ON COLUMN recovered.dense_score IS 'the dense model''s score';
COMMENT ON COLUMN recovered.regained IS 'share of the parent''s loss that came back: 1 is all of it, below 0 the loss grew; for a perplexity, in logarithms; NULL where the parent had lost nothing';
COMMENT ON COLUMN recovered.gained IS 'improvement over before, below 0 where the score is worse, in the metric''s unit; for a perplexity the fall of its logarithm, in nats per token (word_perplexity: per word; byte_perplexity: per byte)';
COMMENT ON COLUMN recovered.trained_tokens IS 'tokens that the recovery was trained on, every epoch counted';
COMMENT ON COLUMN recovered.operations IS 'floating-point operations of the recovery, the teachers'' included';
COMMENT ON COLUMN recovered.hours IS 'duration of the recovery on its machine, hours';
COMMENT ON COLUMN recovered.recovered_per_hour IS 'gained / hours';
COMMENT ON COLUMN recovered.joules IS 'energy of the recovery, J, as in variants; NULL without a counter';
COMMENT ON COLUMN recovered.energy_source IS 'the counters behind joules, or why there is none';
COMMENT ON COLUMN recovered.machine IS 'class of hardware, as in results';
