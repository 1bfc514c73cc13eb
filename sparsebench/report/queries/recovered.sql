-- What recovery regained, by model and task; `best` marks the best at each sparsity. `kept_before` is the share of dense's score before the training.
WITH asked AS (
    SELECT DISTINCT variant_id, weights FROM cells WHERE weights <> 'random' /* manifests */
), budgets AS (
    -- Without a record of its making, only the budget of a training is known.
    SELECT variant_id, max_by(value, position)::DOUBLE AS budget FROM steps WHERE step = 'recover' AND field = 'tokens' GROUP BY variant_id
), found AS (
    SELECT DISTINCT model, weights, recipe, words, sparsity, task, _benchmark(task) AS benchmark,
           scale = 'perplexity' AS lost_in_logs, recovered.higher_is_better, before, after, dense_score, regained,
           trained_tokens, budget, hours, recovered_per_hour, coalesce(ruined, false) AS ruined
    FROM recovered
    JOIN asked USING (variant_id)
    JOIN metrics USING (metric)
    JOIN _recipes USING (variant_id)
    LEFT JOIN budgets USING (variant_id)
    LEFT JOIN (SELECT variant_id, ruined FROM gate) USING (variant_id)
)
SELECT model, weights, recipe, words, sparsity, task, benchmark, if(lost_in_logs, NULL, before) AS before,
       if(lost_in_logs, before, NULL) AS before_perplexity,
       if(lost_in_logs, NULL, after) AS after, if(lost_in_logs, after, NULL) AS after_perplexity,
       if(lost_in_logs, NULL, dense_score) AS dense_score, if(lost_in_logs, dense_score, NULL) AS dense_perplexity,
       if(lost_in_logs, dense_score / before, before / dense_score) AS kept_before, regained, trained_tokens, budget, hours,
       words LIKE '%distilled' AS whole, trained_tokens / nullif(hours, 0) AS hourly, recovered_per_hour, ruined,
       row_number() OVER (PARTITION BY model, weights, task, sparsity ORDER BY if(higher_is_better, -after, after), recipe) = 1 AS best
FROM found
ORDER BY model, NOT lost_in_logs, task, sparsity, recipe, after, weights
