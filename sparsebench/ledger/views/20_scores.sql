-- Every machine's scores, not only those that count: a variant is compared with its own machine's dense score (vs_dense).
CREATE OR REPLACE VIEW _scores AS
WITH scored AS (
    SELECT c.manifest, c.variant_id, c.model, c.family, c.weights, c.method, c.granularity, c.pattern, c.sparsity, c.seed,
           c.calibration, c.dtype, s.task, s.metric, coalesce(m.higher_is_better, true) AS higher_is_better,
           coalesce(m.scale, 'unknown') AS scale, s.score, coalesce(s.score > m.collapsed_above, false) AS collapsed, i.low,
           i.high, i.method AS interval, if(s.n > 1, s.stderr, NULL) AS stderr, s.n, s.limited,
           CASE WHEN s.limited THEN if(c.settings ->> '$.draw' IS NULL, 'first', 'drawn') ELSE 'all' END AS subset,
           _better(coalesce(s.chance, m.guessed), f.floor, coalesce(m.higher_is_better, true)) AS chance, f.floor, f.separable,
           (c.settings ->> '$.num_fewshot')::INTEGER AS num_fewshot, s.protocol ->> '$.repeats' AS repeats,
           (s.protocol ->> '$.bits_per_byte')::DOUBLE AS bits_per_byte, (s.protocol ->> '$.divergence')::DOUBLE AS divergence,
           (s.protocol ->> '$.same_top')::DOUBLE AS same_top, s.protocol, c.settings, c.machine, c.started_at,
           c.origin, c.record_id, c.choice
    FROM _measured c
    JOIN base.scores s USING (record_id)
    LEFT JOIN base.intervals i USING (record_id)
    LEFT JOIN metrics m USING (metric)
    LEFT JOIN _floors f ON (f.source, f.revision, f.family, f.dtype, f.task, f.metric, f.settings)
                         = (c.source, c.revision, c.family, c.dtype, s.task, s.metric, _same(c.settings))
    WHERE c.variant_id NOT IN (FROM _without_skill)
)
SELECT *, _at_chance(low, high, chance, higher_is_better) AS at_chance FROM scored;

CREATE OR REPLACE VIEW scores AS
SELECT * EXCLUDE (choice),
       separable IS false OR coalesce(bool_or(at_chance) FILTER (method = 'dense') OVER (PARTITION BY manifest, model, dtype,
           task, metric, _same(settings)), false) AS dense_at_chance
FROM _scores
WHERE choice = 1;

COMMENT ON VIEW scores IS 'benchmark scores with their intervals, one row per variant and task';
COMMENT ON COLUMN scores.task IS 'benchmark';
COMMENT ON COLUMN scores.metric IS 'acc (share right), acc_norm (the same, length-normalised), ap (average precision), spearman (rank correlation), exact_match (share written exactly right); perplexity, pseudo_perplexity and per (phoneme error rate), all three better when lower; or lm-eval''s own name';
COMMENT ON COLUMN scores.higher_is_better IS 'whether a larger score is better, as in metrics';
COMMENT ON COLUMN scores.scale IS 'what kind of number the score is, as in metrics; unknown for a metric that is not there';
COMMENT ON COLUMN scores.score IS 'the metric''s value, in its own unit (acc, acc_norm, ap and exact_match: 0 to 1; per: edits per phoneme, from 0)';
COMMENT ON COLUMN scores.collapsed IS 'true where the score is beyond metrics.collapsed_above: by how much then means nothing';
COMMENT ON COLUMN scores.low IS 'lower end of the 95% interval of score; NULL where none was computed';
COMMENT ON COLUMN scores.high IS 'upper end of the 95% interval of score';
COMMENT ON COLUMN scores.interval IS 'how the interval was computed';
COMMENT ON COLUMN scores.stderr IS 'standard error of score, as the benchmark''s own protocol gives it; NULL for one document, which does not show how much documents vary';
COMMENT ON COLUMN scores.n IS 'documents scored';
COMMENT ON COLUMN scores.limited IS 'true where the task has more than these n documents';
COMMENT ON COLUMN scores.subset IS 'which documents were scored: all, drawn (at random), or first (the first n, as in records older than the draw)';
COMMENT ON COLUMN scores.chance IS 'score of a model without skill: that of guessing, 1 for an error rate (writing nothing), or the measured floor where that is better; NULL where none is known';
COMMENT ON COLUMN scores.floor IS 'best score without skill (see floors); NULL where none was measured';
COMMENT ON COLUMN scores.separable IS 'whether the task tells the dense model from each floor (see floors); NULL where none was measured';
COMMENT ON COLUMN scores.at_chance IS 'true where the interval of score reaches chance or is worse: no skill is shown';
COMMENT ON COLUMN scores.dense_at_chance IS 'true where the task cannot tell: the dense model itself is at_chance, or separable is false';
COMMENT ON COLUMN scores.num_fewshot IS 'examples in the prompt; NULL is the task''s default';
COMMENT ON COLUMN scores.repeats IS 'whether one batch computed twice agrees to the bit, or by how much it differs; NULL in records from before this was checked';
COMMENT ON COLUMN scores.bits_per_byte IS 'mean negative log-likelihood of a perplexity''s text, bits per byte of UTF-8, comparable across tokenizers; NULL for other tasks, and where the tokenizer gives no positions of its tokens in the text';
COMMENT ON COLUMN scores.divergence IS 'mean Kullback-Leibler divergence of the next token''s distribution from the dense model''s, nats a token; NULL unless a perplexity asked for it (`divergence: true`)';
COMMENT ON COLUMN scores.same_top IS 'share of the tokens whose likeliest successor is the dense model''s, 0 to 1; NULL as divergence';
COMMENT ON COLUMN scores.protocol IS 'the settings that repeat the scoring (JSON)';

CREATE OR REPLACE VIEW floors AS
SELECT source, revision, family, dtype, task, metric, floor, recipe, models, separable, settings FROM _floors;

COMMENT ON VIEW floors IS 'the best score without skill on each task: by random or zero weights in the architecture of the model, or by a heuristic';
COMMENT ON COLUMN floors.metric IS 'metric, as in scores';
COMMENT ON COLUMN floors.floor IS 'the best score of these models';
COMMENT ON COLUMN floors.recipe IS 'recipe of the model with that score';
COMMENT ON COLUMN floors.models IS 'number of such models scored';
COMMENT ON COLUMN floors.separable IS 'whether dense is shown to be better than each of them (the 95% interval of the difference excludes 0); if not, the task says nothing about this model';
COMMENT ON COLUMN floors.settings IS 'the cell''s settings, keys in order';
