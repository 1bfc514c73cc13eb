CREATE OR REPLACE VIEW scores AS
SELECT c.manifest, c.variant_id, c.model, c.family, c.weights, c.method, c.granularity, c.pattern, c.sparsity, c.seed,
       c.calibration, c.dtype, s.task, s.metric, coalesce(m.higher_is_better, true) AS higher_is_better,
       coalesce(m.scale, 'unknown') AS scale, s.score, coalesce(s.score > m.collapsed_above, false) AS collapsed, i.low, i.high, i.method AS interval, s.stderr, s.n, s.limited,
       s.chance, (c.settings ->> '$.num_fewshot')::INTEGER AS num_fewshot, s.protocol ->> '$.repeats' AS repeats, s.protocol, c.settings, c.machine, c.started_at,
       c.record_id
FROM _cells c
JOIN base.scores s USING (record_id)
LEFT JOIN base.intervals i USING (record_id)
LEFT JOIN metrics m USING (metric);

COMMENT ON VIEW scores IS 'benchmark scores with their intervals, one row per variant and task';
COMMENT ON COLUMN scores.task IS 'benchmark';
COMMENT ON COLUMN scores.metric IS 'acc (share right), acc_norm (the same, length-normalised), ap (average precision), spearman (rank correlation), exact_match (share written exactly right), perplexity, pseudo_perplexity and per (phoneme error rate; of all three lower is better), or lm-eval''s own name';
COMMENT ON COLUMN scores.higher_is_better IS 'whether a larger score is the better one, as in metrics';
COMMENT ON COLUMN scores.scale IS 'what kind of number the score is, as in metrics; unknown for a metric that is not there';
COMMENT ON COLUMN scores.score IS 'the metric''s value, in its own unit (acc, acc_norm, ap and exact_match: 0 to 1; per: edits per phoneme, from 0)';
COMMENT ON COLUMN scores.collapsed IS 'true where the score is beyond metrics.collapsed_above: by how much then means nothing';
COMMENT ON COLUMN scores.low IS 'lower end of the 95% interval of score';
COMMENT ON COLUMN scores.high IS 'upper end of the 95% interval of score';
COMMENT ON COLUMN scores.interval IS 'how the interval was computed';
COMMENT ON COLUMN scores.stderr IS 'standard error of score, as the benchmark''s own protocol gives it';
COMMENT ON COLUMN scores.n IS 'documents scored';
COMMENT ON COLUMN scores.limited IS 'true where only the first n documents of the task were scored';
COMMENT ON COLUMN scores.chance IS 'score of a model without skill';
COMMENT ON COLUMN scores.num_fewshot IS 'examples in the prompt; NULL is the task''s default';
COMMENT ON COLUMN scores.repeats IS 'what came of computing one batch of the model''s twice: to the bit, or by how much it differs; NULL in records before this was asked';
COMMENT ON COLUMN scores.protocol IS 'what is needed to score the same way again (JSON)';
