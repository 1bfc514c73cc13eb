-- The properties of each metric: SQL joins this view, Python queries it (ledger/statistics). A metric that is not here, such as
-- one of a user's own lm-eval task, is better when higher, never collapses, and counts as the mean of its documents.
CREATE OR REPLACE VIEW metrics AS
-- A model that writes nothing misses every symbol: its error rate is 1.
SELECT *, if(scale = 'error rate', 1.0::DOUBLE, NULL) AS guessed
FROM (VALUES
    ('acc', true, 'share', NULL::DOUBLE, 'mean'),
    ('acc_norm', true, 'share', NULL, 'mean'),
    ('exact_match', true, 'share', NULL, 'mean'),
    ('f1', true, 'share', NULL, 'mean'),
    ('entity_f1', true, 'share', NULL, 'per symbol'),
    ('rouge_l', true, 'share', NULL, 'mean'),
    ('chrf', true, 'share', NULL, 'mean'),
    ('macro_f1', true, 'share', NULL, 'classes'),
    ('ap', true, 'share', NULL, 'ranking'),
    ('spearman', true, 'correlation', NULL, 'correlation'),
    ('pearson', true, 'correlation', NULL, 'linear correlation'),
    -- Above 10,000 a table of token frequencies, which reads no context, would predict better.
    ('perplexity', false, 'perplexity', 1e4, 'per token'),
    ('pseudo_perplexity', false, 'perplexity', 1e4, 'per token'),
    ('word_perplexity', false, 'perplexity', 1e4, 'mean'),
    ('byte_perplexity', false, 'perplexity', 1e4, 'mean'),
    ('bits_per_byte', false, 'loss', NULL, 'mean'),
    ('nll', false, 'loss', NULL, 'mean'),
    ('loss', false, 'loss', NULL, 'mean'),
    ('brier_score', false, 'loss', NULL, 'mean'),
    ('per', false, 'error rate', NULL, 'per symbol'),
    ('word_error_rate', false, 'error rate', NULL, 'per symbol'),
    ('wer', false, 'error rate', NULL, 'mean'),
    ('ter', false, 'error rate', NULL, 'mean')
) AS known(metric, higher_is_better, scale, collapsed_above, pooling);

COMMENT ON VIEW metrics IS 'the properties of each metric; a metric that is not here is better when higher, and never collapses';
COMMENT ON COLUMN metrics.metric IS 'name of the metric, as in scores';
COMMENT ON COLUMN metrics.higher_is_better IS 'whether a larger score is better';
COMMENT ON COLUMN metrics.scale IS 'share (0 to 1), correlation (-1 to 1), error rate, loss, or perplexity (compared by ratio, drawn on a log axis; its documents are windows of text)';
COMMENT ON COLUMN metrics.collapsed_above IS 'score above which a model has collapsed: how much worse it is then means nothing; NULL where the metric has no such score';
COMMENT ON COLUMN metrics.pooling IS 'how the documents make the score: mean (a score that is not their mean has no interval), per token, per symbol, classes (values are chosen classes, labels right ones), ranking, correlation (of ranks) or linear correlation';
COMMENT ON COLUMN metrics.guessed IS 'score of a model without skill, where it is the same on every task: 1 for an error rate (writing nothing); NULL where it depends on the task';
