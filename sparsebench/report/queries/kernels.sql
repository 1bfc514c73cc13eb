-- Which kernels ran, output heads apart: by engine, what multiplied one token and what multiplied a prompt. A record says
-- `int8 bitmask avx512-vnni ×36 (attention ×24, mlp ×12), dense torch linear ×1 (head); …; more than 8 tokens: tiles by torch ×36`.
WITH timed AS (
    -- Processes of one job may choose other kernels for a prompt.
    SELECT DISTINCT record_id, engine, dtype,
           unnest(list_prepend(kernel,
               list_transform(list_filter(notes, lambda note: note LIKE '% processes ran %'),
                   lambda note: split_part(note, ' processes ran ', 2)))) AS ran
    FROM latency
    WHERE method <> 'dense' AND speedup IS NOT NULL /* manifests */
), plain AS (
    -- Without counts of layers, shares read, and the head.
    SELECT *, regexp_replace(regexp_replace(ran, ' ×\d+| \((attention|mlp|inputs above)[^)]*\)', '', 'g'),
               ', dense torch linear( \(head\))?|[^,;]+ \(head\)(, )?', '', 'g') AS said
    FROM timed
), parts AS (
    SELECT engine, record_id, regexp_extract(ran, '^llama\.cpp, \S+ \S+ (.+?), ', 1) AS gguf, split_part(said, ';', 1) AS layer,
           regexp_extract(layer, '^(int4|int8|bfloat16|float32) ', 1) AS format, dtype,
           said LIKE '%inputs in int8%' AS rounded, said LIKE '%single tokens:%' AS at_once,
           string_split_regex(coalesce(nullif(regexp_extract(said, '(?:more than 8|several) tokens: ([^;]*)', 1), ''),
               'the same'), ', | or ') AS prompt
    FROM plain
), told AS (
    SELECT engine, record_id, coalesce(nullif(gguf, ''), nullif(format, ''), dtype) AS weights, prompt,
           if(gguf <> '', 'llama.cpp',
               concat(trim(rtrim(regexp_replace(layer, '(int4|int8|bfloat16|float32) (bitmask|dense|torch)', '\2', 'g')), ','),
                   if(rounded, '; inputs in int8', ''), if(at_once, '; all blocks in one call', ''))) AS token
    FROM parts
)
SELECT engine, array_to_string(list_sort(list_distinct(list(weights))), ' or ') AS weights, token,
       array_to_string(list_sort(list_distinct(flatten(list(prompt)))), ' or ') AS prompt, count(DISTINCT record_id) AS jobs
FROM told
GROUP BY engine, token
ORDER BY engine, weights, token
