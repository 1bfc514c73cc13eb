-- title: Quality against time: zeros, bits, smaller shapes, training
-- about: the quality that each kind of recipe keeps for the time of a token, and what passes the quality gate
-- finding: finding
-- kind: scatter
-- x: relative
-- xlow: relative_low
-- xhigh: relative_high
-- y: ratio
-- low: low
-- high: high
-- series: kind
-- place: place
-- bound: bound
-- facet: panel
-- columns: 1
-- text: label
-- texts: all
-- reference: gate = quality gate
-- xshare: yes
-- yshare: yes
-- xlabel: time of a token, % of the fastest dense engine's
-- ylabel: perplexity / dense's
-- note: Each variant in the engine where a token takes least: torch, plain transformers, integers in torch's kernels; ours, which skips zeros; skip, which reads the weights that a token needs; llama.cpp. 100% is the fastest engine that ran dense on that machine and workload. Whiskers: 95% intervals. Above three times dense's perplexity a model is ruined; it is not shown, nor what takes more than twice the time. Brackets: a calibration text that is not a method's usual one (d: dense inputs).
-- boundnote: Grey: fails the quality gate, 1.1 times dense's perplexity and 95% of its skill.

WITH fastest AS (
    SELECT variant_id, engine, 100 / speedup AS relative, 100 / speedup_high AS relative_low, 100 / speedup_low AS relative_high,
           gains, rival, rivals, machine_label(machine) AS machine,
           regexp_extract(workload, 'p(\d+)', 1) AS prompt
    FROM _headlines
    WHERE phase = 'decode' AND ranks = 1 AND method <> 'dense' AND speedup IS NOT NULL AND weights <> 'random'
    -- On each machine and prompt, which have a panel, the job whose dense model most engines ran, then the fastest.
    QUALIFY row_number() OVER (PARTITION BY variant_id, machine, prompt ORDER BY rivals DESC, gains DESC, speedup DESC, engine, record_id) = 1
), points AS (
    SELECT DISTINCT c.model, c.weights,
           concat(model_label(c.model, c.weights), ', ', f.machine, chr(10), c.n, ' windows, a prompt of ', prompt,
               ' tokens') AS panel, kind, replace(words, '(text ', '(') || ' (' || _engine_word(engine) || ')' AS label,
           relative, relative_low, relative_high, gains, rival, rivals, c.score / c.dense AS ratio, c.low / c.dense AS low,
           c.high / c.dense AS high, coalesce(passes, false) AS passes, c.n
    FROM curves c
    JOIN fastest f USING (variant_id)
    JOIN _recipes r USING (variant_id)
    LEFT JOIN (SELECT variant_id, passes FROM gate) g USING (variant_id)
    WHERE scale = 'perplexity' AND c.score <= 3 * c.dense AND relative <= 200 AND NOT r.chance
    QUALIFY c.n = max(c.n) OVER (PARTITION BY variant_id)
), shown AS (
    -- Of a model the machine on which most engines ran dense; what does not pass is shown where it is the best of its kind at this time.
    FROM (SELECT *, max(rivals) OVER (PARTITION BY panel) AS ran, count(*) OVER (PARTITION BY panel) AS points FROM points)
    QUALIFY panel = first_value(panel) OVER (PARTITION BY model, weights ORDER BY ran DESC, points DESC, panel)
        AND (passes OR row_number() OVER (PARTITION BY panel, kind, round(relative / 10) ORDER BY ratio, label) = 1)
        AND dense_rank() OVER (ORDER BY ran DESC, points DESC, panel) <= 4
), drawn AS (
    FROM shown
    UNION ALL BY NAME
    SELECT DISTINCT panel, 'dense' AS kind, concat('dense in ', rival) AS label, 100::DOUBLE AS relative, 1::DOUBLE AS ratio,
           true AS passes
    FROM shown
), told AS (
    -- By what ran dense fastest: the least time of a token of fewer bits, where it is shown to gain.
    SELECT rival, min(least) AS least, max(least) AS most, min(zeros) AS zeros
    FROM (SELECT panel, rival, min(relative) FILTER (passes AND gains AND kind = 'bits') AS least,
        min(relative) FILTER (passes AND gains AND kind = 'zeros') AS zeros FROM shown GROUP BY ALL)
    GROUP BY rival
)
SELECT panel, label, kind, NOT passes AS bound, relative, relative_low, relative_high, ratio, low, high, 1.1::DOUBLE AS gate,
       _kind_place(kind) AS place,
       (SELECT concat('Of what passes the quality gate, ',
           string_agg(format('fewer bits take {}% of {}''s time for a token', range_label('{:.0f}', least, most), rival), ', '
               ORDER BY least) FILTER (least IS NOT NULL),
                      if(count(zeros) > 0, format('; zeros {:.0f}%', min(zeros)), '; no zeros gain')) FROM told
                          HAVING count(least) > 0) AS finding
FROM drawn
ORDER BY panel, bound, kind = 'dense', place, relative, label;
