-- The losses that the tests find in four cases of five, in points, from `least` to `most`, on each model's largest samples. `coarse`: the
-- task whose tests at best find a loss (`best`) that is most times what the quality gate allows there (`allowed`), if one exceeds it.
WITH found AS (
    SELECT t.task, 100 * s.detectable AS points, 100 * 0.05 * abs(t.score - t.chance) AS allowed,
           min(points) OVER (PARTITION BY t.model, t.weights, t.dtype, t.task, t.n, t.num_fewshot) AS best
    FROM {tasks} t
    JOIN {scores} s ON (s.model, s.weights, s.dtype, s.task, s.n) = (t.model, t.weights, t.dtype, t.task, t.n)
        AND s.num_fewshot IS NOT DISTINCT FROM t.num_fewshot
    WHERE NOT t.blind AND t.most AND s.detectable IS NOT NULL AND s.detectable_share IS NULL
)
SELECT min(points) AS least, max(points) AS most,
       arg_max(task, best / allowed) FILTER (allowed > 0 AND best > allowed) AS coarse,
       arg_max(best, best / allowed) FILTER (allowed > 0 AND best > allowed) AS best,
       arg_max(allowed, best / allowed) FILTER (allowed > 0 AND best > allowed) AS allowed
FROM found
HAVING count(*) > 0
