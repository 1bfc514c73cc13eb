-- The smallest encoder beside the largest, on the tasks of both.
WITH sized AS (
    SELECT model, parameters FROM {models} WHERE family = 'encoder' AND weights <> 'random' AND parameters IS NOT NULL
), ends AS (
    SELECT arg_min(model, (parameters, model)) AS small, arg_max(model, (parameters, model)) AS large, min(parameters) / max(parameters) AS size
    FROM sized
    HAVING count(*) > 1
), scored AS (
    FROM {tasks} WHERE NOT blind AND most
)
SELECT small, large, size, s.task, s.score, l.score AS large_score
FROM ends
JOIN scored s ON s.model = small
JOIN scored l ON l.model = large AND l.task = s.task
QUALIFY row_number() OVER (PARTITION BY s.task ORDER BY s.n DESC, l.n DESC) = 1
ORDER BY s.task
