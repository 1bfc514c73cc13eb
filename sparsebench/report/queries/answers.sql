-- Answers of 200 tokens, computed from the measured times of the prompt and of a token: of each model the variant that passes the quality
-- gate and would be through first, of those that are shown to gain on a token. The speed is over the fastest dense engine, on the workload
-- on which most engines ran dense. `ahead_from`: the tokens from which on it is ahead of all others that read the prompt faster, `behind`
-- the last of these.
WITH asked AS (
    SELECT DISTINCT variant_id FROM cells WHERE weights <> 'random' /* manifests */
), usual AS (
    SELECT model, weights, arg_min(workload, (-rivals, workload)) AS workload FROM _long_answers GROUP BY ALL
), able AS (
    SELECT a.model, a.weights, machine, r.words AS recipe, engine, a.workload, tokens, ms, prompt_ms, token_ms, dense_ms, speedup, rivals
    FROM _long_answers a
    JOIN asked USING (variant_id)
    JOIN gate g USING (variant_id)
    JOIN _recipes r USING (variant_id)
    JOIN usual u ON (u.model, u.weights, u.workload) = (a.model, a.weights, a.workload)
    WHERE g.passes AND gains AND rivals > 1 AND NOT r.chance
), soonest AS (
    FROM able
    QUALIFY row_number() OVER (PARTITION BY model, weights ORDER BY speedup DESC, workload, recipe, engine) = 1
)
SELECT f.model, f.weights, f.recipe, f.engine, f.workload, f.tokens, f.ms, f.dense_ms, f.speedup, f.rivals,
       max((f.prompt_ms - o.prompt_ms) / (o.token_ms - f.token_ms)) AS ahead_from,
       arg_max(o.recipe, (f.prompt_ms - o.prompt_ms) / (o.token_ms - f.token_ms)) AS behind
FROM soonest f
LEFT JOIN able o ON (o.model, o.weights, o.machine, o.workload) = (f.model, f.weights, f.machine, f.workload)
                AND o.prompt_ms < f.prompt_ms AND o.token_ms > f.token_ms
GROUP BY ALL
ORDER BY f.model
