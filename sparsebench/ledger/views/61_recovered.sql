-- What a recovery was worth: a variant whose last step trains it, beside the one that it was made from.
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
    -- A perplexity is an exponential: what it loses is counted before that.
    SELECT *, CASE WHEN scale = 'perplexity' THEN ln(before / after) / nullif(ln(before / dense_score), 0)
                   ELSE (after - before) / nullif(dense_score - before, 0) END AS regained,
           CASE WHEN scale = 'perplexity' THEN ln(before / after)
                ELSE if(higher_is_better, after - before, before - after) END AS gained
    FROM pairs
)
SELECT manifest, variant_id, model, family, recipe, sparsity, task, metric, higher_is_better, before, after, dense_score, regained,
       gained, trained_tokens, operations, hours, gained / hours AS recovered_per_hour, joules, energy_source, machine
FROM scaled
ORDER BY manifest, model, task, recipe;

COMMENT ON VIEW recovered IS 'what training after a cut was worth: one row per recovered variant and task, where what it was made from is measured too';
COMMENT ON COLUMN recovered.recipe IS 'all that was done to the model; the last step is the recovery';
COMMENT ON COLUMN recovered.metric IS 'metric, as in scores';
COMMENT ON COLUMN recovered.before IS 'the score of what it was made from';
COMMENT ON COLUMN recovered.after IS 'its own score';
COMMENT ON COLUMN recovered.dense_score IS 'the untouched model''s score';
COMMENT ON COLUMN recovered.regained IS 'share of what the parent had lost that came back: 1 is all of it, below 0 more was lost; of a perplexity, in logarithms';
COMMENT ON COLUMN recovered.gained IS 'by how much its score is better than before, below 0 where it is worse: in the metric''s own unit; of a perplexity the fall of its logarithm, which is nats a token, or a word or byte where the perplexity is of these';
COMMENT ON COLUMN recovered.trained_tokens IS 'tokens that the recovery was trained on, every epoch counted';
COMMENT ON COLUMN recovered.operations IS 'floating-point operations that it took, the teachers'' included';
COMMENT ON COLUMN recovered.hours IS 'hours that it took on the machine that made it';
COMMENT ON COLUMN recovered.recovered_per_hour IS 'gained over hours';
COMMENT ON COLUMN recovered.joules IS 'joules that it took, as in variants; NULL without a counter';
COMMENT ON COLUMN recovered.energy_source IS 'the counters behind joules, or why there is none';
COMMENT ON COLUMN recovered.machine IS 'class of hardware, as in results';
