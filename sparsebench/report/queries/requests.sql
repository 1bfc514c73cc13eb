-- What passes the quality gate and answers a request faster than the fastest dense engine. Where most engines ran dense
-- comes first, then the fastest. `best`: each model's first.
SELECT model, weights, kind, recipe, request, rival, rivals, engine, workload,
       nullif(regexp_extract(workload, 'a prompt of (\d+) tokens, an answer of \d+$', 1), '')::INTEGER AS prompt_tokens,
       nullif(regexp_extract(workload, 'a prompt of \d+ tokens, an answer of (\d+)$', 1), '')::INTEGER AS answer_tokens,
       row_number() OVER (PARTITION BY model ORDER BY rivals DESC, request DESC, recipe) = 1 AS best
FROM {decision}
-- An encoder's pass is no answer.
WHERE request IS NOT NULL AND prompt_shown IS NOT NULL
ORDER BY rivals DESC, request DESC, model, recipe
