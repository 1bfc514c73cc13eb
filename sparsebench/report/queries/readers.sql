-- How an engine reads a prompt for the dense model: `quick` where it takes less than a tenth longer than the fastest on every model, `slow`
-- where it always takes twice as long. `starts`, model by model: the tokens of an answer, over the prompt's, that take as long as the prompt.
WITH read AS (
    SELECT engine, prompt_ms / min(prompt_ms) OVER (PARTITION BY model) AS slower,
           prompt_ms / token_ms / regexp_extract(workload, '^b\d+ p(\d+)', 1)::INTEGER AS starts
    FROM {costs}
    WHERE kind = 'dense' AND widest AND rivals > 1 AND prompt_ms IS NOT NULL AND token_ms IS NOT NULL
)
SELECT engine, max(slower) < 1.1 AS quick, min(slower) > 2 AS slow, list(starts ORDER BY starts) AS starts
FROM read
GROUP BY engine
ORDER BY engine
