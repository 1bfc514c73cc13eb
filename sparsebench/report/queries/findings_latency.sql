-- Per setting: how many comparisons with dense there are, how many were faster by more than the noise, and how many of the others
-- were not steady, had no noise floor, or could not resolve 20%, so that they may hide a gain. A whole request repeats its prefill and decode.
WITH every AS (
    SELECT *, if(variant_id IN (FROM _more_than_zeros),
               (SELECT 'of ' || any_value(words) FROM _recipes r WHERE r.variant_id = latency.variant_id),
               'at ' || percent_label(sparsity) || '%') AS what,
           max(parity_l2) OVER setting AS furthest,
           min(dense_ms) FILTER (phase IN ('decode', 'forward') AND speedup IS NOT NULL) OVER setting AS least_dense,
           max(dense_ms) FILTER (phase IN ('decode', 'forward') AND speedup IS NOT NULL) OVER setting AS most_dense,
           -- AVX2 has no products of bfloat16 matrices: a gain over emulation is the best only where there is no other.
           coalesce(dtype = 'bfloat16' AND device = 'cpu' AND machine_label(machine) LIKE '%AVX2%' AND phase <> 'decode', false) AS emulated,
           (NOT emulated, speedup) AS standing, phase || if(emulated, ', dense emulating bfloat16,', '') AS said
    FROM latency
    WHERE phase NOT IN ('load', 'generate') /* manifests */
    WINDOW setting AS (PARTITION BY model, weights, machine, engine, device, ranks, threads, dtype, workload)
), compared AS (
    SELECT *
    FROM every
    WHERE method <> 'dense' AND speedup IS NOT NULL
    QUALIFY row_number() OVER (PARTITION BY record_id, phase ORDER BY manifest) = 1
)
SELECT model, weights, machine, trim(regexp_extract(machine, '^[^×]*')) AS processor,
       split_part(machine_label(machine), ',', 1) AS chip, engine,
       array_to_string(list_sort(list_distinct(list(kernel))), ' / ') AS kernel, device, ranks, threads, dtype, workload,
       bool_and(wraps_only) AS wraps_only,
       count(*) AS comparisons, count(*) FILTER (verdict = 'faster') AS faster, count(*) FILTER (verdict = 'slower') AS slower,
       count(*) FILTER (verdict IN ('not steady', 'no noise floor') OR verdict = 'no difference detected' AND resolution > 0.2) AS unclear,
       -- Instructions alone, where they tell the machines apart.
       CASE WHEN count(DISTINCT regexp_extract(machine, '^[^(]*')) OVER () > 1 THEN processor
            WHEN count(DISTINCT split_part(machine_label(machine), ',',
                1)) OVER () < count(DISTINCT machine_label(machine)) OVER () THEN machine_label(machine)
            ELSE split_part(machine_label(machine), ',', 1) END AS short,
       -- Jobs of one setting differ by a few percent on a quiet machine.
       any_value(least_dense) AS least_dense,
       CASE WHEN any_value(most_dense > 1.1 * least_dense) THEN any_value(most_dense) END AS disturbed_dense,
       max(sparsity) AS largest, median(dense_ms) FILTER (phase IN ('decode', 'forward')) AS dense_ms,
       nullif(min(processes), 1) AS processes, list_sort(list_distinct(list(manifest))) AS manifests, max(noise) AS noise,
       list_sort(list_distinct(flatten(list(notes)))) AS notes, min(speedup_low) AS lowest, max(speedup_high) AS highest,
       arg_max(speedup, standing) FILTER (verdict = 'faster') AS shown_best,
       coalesce(arg_max(said, standing) FILTER (verdict = 'faster'), arg_max(said, standing)) AS best_phase,
       coalesce(arg_max(what, standing) FILTER (verdict = 'faster'), arg_max(what, standing)) AS best_what,
       coalesce(arg_max(noise, standing) FILTER (verdict = 'faster'), arg_max(noise, standing)) AS best_noise,
       1 + min(noise) AS least_noise, 1 + nullif(max(noise), min(noise)) AS most_noise, max(furthest) AS parity,
       CASE unclear WHEN comparisons THEN 'too noisy to tell' WHEN 0 THEN 'no gain' ELSE 'none shown' END AS otherwise
FROM compared
GROUP BY model, weights, machine, engine, device, ranks, threads, dtype, workload
ORDER BY weights = 'random', model, machine, engine, ranks, threads, dtype, workload
