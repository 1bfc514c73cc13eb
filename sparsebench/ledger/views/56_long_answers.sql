-- How long an answer of 200 tokens takes, computed from measured parts: the time of the workload's prompt, then that of each token.
-- Dense is the engine that would be through first. A variant's parts are the fastest dense ones over its speed-ups (`_headlines`), so that
-- tables agree. `gains`: a gain on a token is shown.
CREATE OR REPLACE VIEW _long_answers AS
WITH dense AS (
    SELECT model, weights, machine, workload, name, min(ms) FILTER (phase = 'prefill') AS prompt, min(ms) FILTER (phase = 'decode') AS token
    FROM _dense_times
    GROUP BY ALL
    HAVING prompt IS NOT NULL AND token IS NOT NULL
), fastest AS (
    SELECT model, weights, machine, workload, min(prompt) AS prompt, min(token) AS token, min(prompt + 200 * token) AS dense_ms
    FROM dense
    GROUP BY ALL
), timed AS (
    SELECT variant_id, model, weights, machine, engine, workload, record_id, max(rivals) AS rivals,
           any_value(speedup) FILTER (phase = 'prefill') AS prompt_speedup, any_value(speedup) FILTER (phase = 'decode') AS token_speedup,
           coalesce(bool_or(gains) FILTER (phase = 'decode'), false) AS gains
    FROM _headlines
    WHERE method <> 'dense' AND ranks = 1 AND workload LIKE 'b1 %'
    GROUP BY ALL
)
SELECT variant_id, model, weights, machine, engine, workload, rivals, gains, 200 AS tokens, dense_ms, prompt / prompt_speedup AS prompt_ms,
       token / token_speedup AS token_ms, prompt_ms + 200 * token_ms AS ms, dense_ms / ms AS speedup
FROM timed
JOIN fastest USING (model, weights, machine, workload)
WHERE prompt_speedup IS NOT NULL AND token_speedup IS NOT NULL;
