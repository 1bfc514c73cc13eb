-- What records with a result say, in a few words: equal words, equal results. Of a score they name its outcomes too, by a hash.
CREATE OR REPLACE VIEW _answers AS
SELECT record_id, format('{} {:.6g} on {} documents, outcomes {}', metric, score, n, coalesce(outcomes, 'unknown')) AS says
FROM base.scores
LEFT JOIN (
    SELECT record_id, right(format('{:06x}', bit_xor(hash(doc_id, doc_hash, round(value, 4), round(label, 4)))), 6) AS outcomes
    FROM base.outcomes
    GROUP BY record_id
) USING (record_id)
UNION ALL
SELECT record_id, concat(zeros, ' of ', prunable, ' prunable weights are zero') FROM base.makings
UNION ALL
SELECT record_id, concat(sum(zeros), ' of ', sum(count), ' weights are zero') FROM base.structure_tensors GROUP BY record_id
UNION ALL
SELECT record_id, string_agg(concat(bytes, ' bytes as ', format), ', ' ORDER BY format) FROM base.sizes GROUP BY record_id
UNION ALL
SELECT record_id, format('errors of {:.6g} on average', avg(error)) FROM base.outputs GROUP BY record_id
UNION ALL
SELECT record_id, string_agg(format('{} {:.4g} ms', phase, 1000 * median_s), ', ' ORDER BY phase)
FROM base.latency_phases
WHERE side = 'variant' AND phase <> 'load'
GROUP BY record_id
UNION ALL
SELECT record_id, concat(peak_bytes, ' bytes at the peak') FROM base.memory;

-- Each record that says otherwise than the record of its cell that counts. Times and memory vary: of these, one maker's do not conflict.
CREATE OR REPLACE VIEW conflicts AS
WITH several AS (
    SELECT m.*, first_value(record_id) OVER (PARTITION BY cell_id, scope ORDER BY l.record_id IS NULL, m.arrived DESC) AS counts_record_id
    FROM _made m
    LEFT JOIN (SELECT record_id FROM _latest) l USING (record_id)
    WHERE status = 'done'
    QUALIFY count(*) OVER (PARTITION BY cell_id, scope) > 1
), answered AS (
    SELECT s.*, a.says, e.machine FROM several s LEFT JOIN _answers a USING (record_id) LEFT JOIN base.environments e USING (environment_id)
)
SELECT o.manifest, o.stage, v.model, v.recipe,
       coalesce(o.settings ->> '$.task', concat(o.settings ->> '$.engine', ' ×', o.settings ->> '$.ranks', ' ', _workload(o.settings)), '') AS label,
       CASE WHEN o.variant_id <> c.variant_id THEN 'another variant: ' WHEN _same(o.settings) <> _same(c.settings) THEN 'other settings: ' ELSE '' END
       || coalesce(o.says, '') AS says,
       c.says AS counts, o.origin, c.origin AS counts_origin, c.own AS counts_own, o.machine, c.machine AS counts_machine, o.started_at,
       c.started_at AS counts_started_at, o.variant_id, o.cell_id, o.record_id, c.record_id AS counts_record_id
FROM answered o
JOIN answered c ON c.record_id = o.counts_record_id
LEFT JOIN base.variants v ON v.variant_id = c.variant_id
WHERE if(o.stage IN ('latency', 'memory'), o.maker IS DISTINCT FROM c.maker,
         o.says IS DISTINCT FROM c.says OR o.variant_id <> c.variant_id OR _same(o.settings) <> _same(c.settings))
ORDER BY o.manifest, v.model, v.recipe, o.stage, label, o.started_at, o.record_id;

COMMENT ON VIEW conflicts IS 'records that say otherwise than the record of their cell that counts: this workspace''s own, else that of the maker whose result arrived first';
COMMENT ON COLUMN conflicts.manifest IS 'experiment for which the record was made that does not count';
COMMENT ON COLUMN conflicts.recipe IS 'recipe of the record that counts';
COMMENT ON COLUMN conflicts.label IS 'task, or engine and workload';
COMMENT ON COLUMN conflicts.says IS 'result that does not count; with the same words for another variant or other settings, the record is not what its cell_id says';
COMMENT ON COLUMN conflicts.counts IS 'result that counts';
COMMENT ON COLUMN conflicts.origin IS 'workspace that made the record; published for the committed ones, empty where the record does not say it';
COMMENT ON COLUMN conflicts.counts_origin IS 'workspace that made the record that counts';
COMMENT ON COLUMN conflicts.counts_own IS 'whether that is the workspace of this ledger';
COMMENT ON COLUMN conflicts.machine IS 'class of hardware of the record that does not count';
COMMENT ON COLUMN conflicts.counts_machine IS 'class of hardware of the record that counts';
COMMENT ON COLUMN conflicts.started_at IS 'start of the record that does not count, UTC';
COMMENT ON COLUMN conflicts.counts_started_at IS 'start of the record that counts, UTC';
COMMENT ON COLUMN conflicts.counts_record_id IS 'key of the base tables for the record that counts';
