-- title: Quality against time: zeros, bits, smaller shapes, training
-- about: the quality that each kind of recipe keeps for the time of a token
-- finding: finding
-- kind: scatter
-- x: relative
-- xlow: relative_low
-- xhigh: relative_high
-- y: score
-- low: low
-- high: high
-- series: kind
-- place: place
-- facet: panel
-- columns: 1
-- text: label
-- texts: all
-- reference: dense = dense
-- yscale: log
-- xlabel: time of a decoded token / that of the dense model
-- ylabel: perplexity (lower is better)
-- note: Each variant is shown in the engine where it is fastest, beside the dense model in the same engine and job. Dense is plain torch, not the machine's fastest dense engine. All gain over torch's product counts, whether bytes or a faster kernel bring it. Whiskers: 95% intervals; where one crosses 1, or the noise hides it, no difference is shown. Models above ten times the dense perplexity are left out. Brackets: the number of a calibration text that is not a method's usual one (d: dense inputs).

WITH fastest AS (
    SELECT variant_id, engine, speedup, speedup_low, speedup_high, verdict IN ('faster', 'slower') AS shown, record_id,
           concat(machine_label(machine), ', ', dtype, ', prompt of ', regexp_extract(workload, 'p(\d+)', 1), ' tokens') AS setting, split_part(machine_label(machine), ',', 1) AS short
    FROM latency
    WHERE phase = 'decode' AND ranks = 1 AND method <> 'dense' AND speedup IS NOT NULL
    QUALIFY row_number() OVER (PARTITION BY variant_id ORDER BY shown AND speedup > 1 DESC, speedup DESC, engine) = 1
), beside AS (
    -- The prompt and the whole request of the same job.
    SELECT record_id, 1 / any_value(speedup) FILTER (phase = 'prefill') AS prompt, 1 / any_value(speedup) FILTER (phase = 'generate') AS request FROM latency GROUP BY record_id
), points AS (
    SELECT DISTINCT c.model, c.panel || ', ' || setting AS panel, weights = 'dequantized' AND words LIKE '%int4%' AS again, prompt, request, score, low, high, min(c.dense) OVER (PARTITION BY c.panel) AS dense, replace(words, '(text ', '(') || ' (' || engine || ')' AS label, kind, shown, short, 1 / speedup AS relative, 1 / speedup_high AS relative_low, 1 / speedup_low AS relative_high
    FROM curves c
    JOIN fastest USING (variant_id)
    LEFT JOIN beside USING (record_id)
    JOIN _recipes r USING (variant_id)
    WHERE scale = 'perplexity' AND score <= 10 * c.dense AND NOT r.chance
), told AS (
    -- The fastest that stays within a tenth of the dense perplexity.
    SELECT panel, model, count(DISTINCT model) OVER () > 1 AS several, any_value(short) AS short, any_value(dense) AS whole, arg_min(label, relative) FILTER (close) AS best, min(relative) FILTER (close) AS least,
           arg_min(concat(format('; its prompt {:.0f}%', 100 * prompt), format(', a request {:.0f}%', 100 * request)), relative) FILTER (close) AS rest, arg_min(again, relative) FILTER (close) AS again,
           min(relative) FILTER (shown) AS quickest, arg_min(label, relative) FILTER (shown) AS quick, arg_min(score, relative) FILTER (shown) / any_value(dense) AS cost
    FROM (SELECT *, score <= 1.1 * dense AND shown AS close FROM points)
    GROUP BY panel, model
    HAVING count(DISTINCT kind) > 1
), said AS (
    SELECT 'Time of a token within a tenth of the dense perplexity: '
           || string_agg(concat(if(several, model || ', ', ''), short, ': ',
                                CASE WHEN least < 1 THEN format('{} {:.0f}%{}', best, 100 * least, if(rest = '', '', ' (' || ltrim(rest, '; ,') || ')'))
                                     WHEN quickest < 1 THEN format('nothing is faster ({} takes {:.0f}% at {:.1f} times the perplexity)', quick, 100 * quickest, cost)
                                     ELSE 'nothing is shown to be faster' END), '; ' ORDER BY panel) || if(bool_or(coalesce(again, false) AND least < 1), '. Dense came out of 4 bits, which favours int4', '') AS finding
    FROM told
), drawn AS (
    FROM points
    UNION ALL BY NAME
    SELECT panel, whole AS score, whole AS dense, 'dense' AS label, 'dense' AS kind, 1.0 AS relative FROM told
)
SELECT panel, label, kind, relative, relative_low, relative_high, score, low, high, dense, _kind_place(kind) AS place, finding
FROM drawn
JOIN told USING (panel)
CROSS JOIN said
ORDER BY panel, kind = 'dense', place, relative, label;
