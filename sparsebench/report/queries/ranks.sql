-- What more ranks do to the dense model: a step's time and the peak memory beside those of one rank. The times are from different
-- jobs, so that a ratio near 1 says little; the noise is the larger of the two.
WITH asked AS (
    SELECT DISTINCT record_id, model, weights, machine, engine, ranks, threads, dtype, workload, phase, ms, noise
    FROM latency
    WHERE method = 'dense' AND phase <> 'load' AND engine <> 'deepspeed-zero3' /* manifests */
), timed AS (
    SELECT * EXCLUDE (record_id, ms, noise), median(ms) AS ms, max(noise) AS noise FROM asked GROUP BY ALL
), weighed AS (
    SELECT DISTINCT m.model, m.weights, m.machine, m.engine, m.ranks, m.dtype, m.workload, peak_bytes, largest
    FROM memory m
    JOIN (SELECT record_id, max(peak_bytes) AS largest FROM memory WHERE rank IS NOT NULL AND phase <> 'load'
        GROUP BY record_id) USING (record_id)
    WHERE method = 'dense' AND phase = 'overall' AND rank IS NULL
    QUALIFY row_number() OVER (PARTITION BY m.model, m.weights, m.machine, m.engine, m.ranks, m.dtype, m.workload ORDER BY started_at DESC) = 1
)
SELECT several.model, several.weights, several.machine, several.engine, several.dtype, several.workload, several.phase, several.ranks,
       several.threads, one.ms AS one_ms, several.ms, several.ms / one.ms AS ratio, greatest(one.noise, several.noise) AS noise,
       shared.peak_bytes AS bytes, shared.largest, shared.largest / alone.peak_bytes AS largest_ratio,
       shared.peak_bytes / alone.peak_bytes AS sum_ratio
FROM timed several
JOIN timed one ON one.ranks = 1 AND several.ranks > 1 AND one.threads = several.ranks * several.threads
    AND one.phase = several.phase AND one.model = several.model AND one.weights = several.weights
              AND one.machine = several.machine AND one.engine = several.engine AND one.dtype = several.dtype AND one.workload = several.workload
LEFT JOIN weighed alone ON alone.ranks = 1 AND alone.model = one.model AND alone.weights = one.weights AND alone.machine = one.machine
                       AND alone.engine = one.engine AND alone.dtype = one.dtype AND alone.workload = one.workload
LEFT JOIN weighed shared ON shared.ranks = several.ranks AND shared.model = several.model AND shared.weights = several.weights
                        AND shared.machine = several.machine AND shared.engine = several.engine AND shared.dtype = several.dtype
                        AND shared.workload = several.workload
ORDER BY several.weights = 'random', several.model, several.machine, several.engine, several.ranks, several.workload,
         list_position(['forward', 'encode', 'prefill', 'decode', 'generate'], several.phase)
