-- title: Quality against bytes: zeros, bits, smaller shapes, training
-- about: the quality that each kind of recipe keeps for its bytes, and what passes the quality gate
-- finding: finding
-- kind: scatter
-- x: share
-- y: ratio
-- low: low
-- high: high
-- series: kind
-- place: place
-- bound: bound
-- facet: panel
-- columns: 1
-- front: high_wins
-- text: label
-- texts: all
-- reference: gate = quality gate
-- xshare: yes
-- yshare: yes
-- xlabel: weight files, zeros packed, % of dense
-- ylabel: perplexity / dense's
-- note: Percentages: of the weights that are zero, or of the blocks' parameters that were removed. A GGUF: the 4-bit file that dense came out of. Line: the best that pass. Open marks: a variant on the line is as good and smaller. Whiskers: 95% intervals of the ratio, window by window. Above twice dense's perplexity nothing is shown.
-- boundnote: Grey: fails the quality gate, 1.1 times dense's perplexity and 95% of its skill; the best at these bytes.

WITH packed AS (
    SELECT variant_id, any_value(bytes) AS bytes FROM sizes WHERE format = 'packed' GROUP BY ALL
    UNION ALL BY NAME
    -- A variant made with other libraries is another, but as large.
    SELECT r.variant_id, any_value(bytes) AS bytes
    FROM _recipes r
    JOIN (SELECT DISTINCT variant_id, model, weights FROM scores) USING (variant_id)
    JOIN (SELECT model, weights, words, min(bytes) AS bytes FROM sizes JOIN _recipes USING (variant_id) WHERE format = 'packed'
        GROUP BY ALL) USING (model, weights, words)
    WHERE r.variant_id NOT IN (SELECT variant_id FROM sizes WHERE format = 'packed')
    GROUP BY ALL
), points AS (
    SELECT DISTINCT c.model, c.weights, c.variant_id, c.score, p.low, p.high, min(c.dense) OVER (PARTITION BY c.panel) AS dense, bytes,
           concat(model_label(c.model, c.weights), ', ', n, ' windows') AS panel,
           coalesce(regexp_replace(regexp_replace(words, ' \(text [^)]*\)', ''), 'blocks trained(, distilled)?', 'trained'), 'dense') AS label,
           coalesce(kind, 'dense') AS kind
    FROM curves c
    JOIN packed USING (variant_id)
    LEFT JOIN (SELECT variant_id, score, any_value(ratio_low) AS low, any_value(ratio_high) AS high FROM vs_dense
        GROUP BY ALL) p ON (p.variant_id, p.score) = (c.variant_id, c.score)
    LEFT JOIN _recipes r ON r.variant_id = c.variant_id AND c.method <> 'dense'
    WHERE scale = 'perplexity' AND NOT coalesce(r.chance, false)
      -- A variant that skips keeps every byte (bytes_read shows it); chains of three kinds crowd the others.
      AND NOT regexp_matches(coalesce(kind, ''), 'skipped inputs|experts|\+.*\+')
    -- One panel per model: the one that was scored on the most text.
    QUALIFY n = max(n) OVER (PARTITION BY c.model, c.weights)
), named AS (
    SELECT *, score / dense AS ratio, bytes / max(bytes) FILTER (kind = 'dense') OVER (PARTITION BY panel) AS part,
           kind = 'dense' OR variant_id IN (SELECT variant_id FROM gate WHERE passes) AS passes
    FROM points
    WHERE score <= 2 * dense
    QUALIFY row_number() OVER (PARTITION BY panel, label, kind ORDER BY score, bytes) = 1
), shown AS (
    -- Of what passes, the best of each kind at these bytes; of what does not, the best of all.
    FROM named
    QUALIFY row_number() OVER (PARTITION BY panel, passes, if(passes, if(kind = 'bits', label, kind), ''),
        if(passes, round(part, 2), floor(20 * part)) ORDER BY score, label) = 1
), told AS (
    SELECT panel, min(part) FILTER (kind = 'bits' AND passes) AS bits, min(part) FILTER (kind = 'zeros' AND passes) AS zeros,
           any_value(fetched) AS fetched
    FROM named
    LEFT JOIN (SELECT model, weights, max(share) AS fetched FROM sizes WHERE format = 'source' AND weights = 'dequantized'
        GROUP BY ALL) USING (model, weights)
    GROUP BY panel
    HAVING count(DISTINCT kind) FILTER (kind <> 'dense') > 1
), said AS (
    SELECT concat('Within the gate, fewer bits reach ', range_label('{:.0f}', 100 * min(bits), 100 * max(bits)), '% of the bytes, ',
                  coalesce('zeros alone ' || range_label('{:.0f}', 100 * min(zeros), 100 * max(zeros)) || '%', 'and no zeros pass'),
                  -- A grid of 16 values is easily met again.
                  CASE WHEN count(fetched) = 0 THEN '' WHEN count(fetched) < count(*) THEN ' (some models came from 4-bit files)'
                      WHEN count(*) = 2 THEN ' (both models came from 4-bit files)' ELSE ' (from 4-bit files)' END) AS finding
    FROM told
    HAVING min(bits) IS NOT NULL
)
SELECT if(fetched IS NULL, panel,
           replace(panel, '(dequantized)', format('(dequantized from a GGUF of {:.0f}%)', 100 * fetched))) AS panel, label, kind,
               NOT passes AS bound, round(100 * part, 1) AS share, ratio, low, high, 1.1::DOUBLE AS gate,
       _kind_place(kind) AS place, if(passes, false, NULL) AS high_wins, finding
FROM shown
JOIN told USING (panel)
LEFT JOIN said ON true
ORDER BY panel, bound, kind = 'dense', place, share, label;
