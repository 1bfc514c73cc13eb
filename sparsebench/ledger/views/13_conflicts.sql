-- What records with a result say, in a few words, and a hash of the outcomes of scores.
CREATE OR REPLACE VIEW _answers AS
SELECT record_id, format('{} {:.6g} on {} documents', metric, score, n) AS says, outcomes
FROM base.scores
LEFT JOIN (
    SELECT record_id, bit_xor(hash(doc_id, doc_hash, round(value, 4), round(label, 4))) AS outcomes FROM base.outcomes GROUP BY record_id
) USING (record_id)
UNION ALL
SELECT record_id, concat(zeros, ' of ', prunable, ' prunable weights are zero'), NULL FROM base.makings
UNION ALL
SELECT record_id, concat(sum(zeros), ' of ', sum(count), ' weights are zero'), NULL FROM base.structure_tensors GROUP BY record_id
UNION ALL
SELECT record_id, string_agg(concat(bytes, ' bytes as ', format), ', ' ORDER BY format), NULL FROM base.sizes GROUP BY record_id
UNION ALL
SELECT record_id, format('errors of {:.6g} on average', avg(error)), NULL FROM base.outputs GROUP BY record_id
UNION ALL
SELECT record_id, string_agg(format('{} {:.4g} ms', phase, 1000 * median_s), ', ' ORDER BY phase), NULL
FROM base.latency_phases
WHERE side = 'variant' AND phase <> 'load'
GROUP BY record_id
UNION ALL
SELECT record_id, concat(peak_bytes, ' bytes at the peak'), NULL FROM base.memory;

-- Each record that says otherwise than the record of its cell that counts. Times and memory vary: of these, one maker's do not conflict.
CREATE OR REPLACE VIEW conflicts AS
WITH several AS (
    SELECT m.*, first_value(record_id) OVER (PARTITION BY cell_id, scope ORDER BY l.record_id IS NULL, m.arrived DESC) AS counts_record_id
    FROM _made m
    LEFT JOIN (SELECT record_id FROM _counted) l USING (record_id)
    WHERE status = 'done'
    QUALIFY count(*) OVER (PARTITION BY cell_id, scope) > 1
), answered AS (
    SELECT s.*, a.says, a.outcomes, e.machine
    FROM several s
    LEFT JOIN _answers a USING (record_id)
    LEFT JOIN base.environments e USING (environment_id)
)
SELECT o.manifest, o.stage, v.model, v.recipe,
       coalesce(o.settings ->> '$.task',
           format('{} ×{} {}', o.settings ->> '$.engine', o.settings ->> '$.ranks', _workload(o.settings)), '') AS label,
       CASE WHEN o.variant_id <> c.variant_id THEN 'another variant: ' WHEN _same(o.settings) <> _same(c.settings) THEN 'other settings: '
            WHEN o.says = c.says AND o.outcomes <> c.outcomes THEN 'other outcomes: ' ELSE '' END || coalesce(o.says, '') AS says,
       c.says AS counts, o.origin, c.origin AS counts_origin, c.own AS counts_own, o.machine, c.machine AS counts_machine, o.started_at,
       c.started_at AS counts_started_at, o.variant_id, o.cell_id, o.record_id, c.record_id AS counts_record_id
FROM answered o
JOIN answered c ON c.record_id = o.counts_record_id
LEFT JOIN base.variants v ON v.variant_id = c.variant_id
WHERE if(o.stage IN ('latency', 'memory'), o.maker IS DISTINCT FROM c.maker,
         o.says IS DISTINCT FROM c.says OR o.outcomes <> c.outcomes OR o.variant_id <> c.variant_id OR _same(o.settings) <> _same(c.settings))
ORDER BY o.manifest, v.model, v.recipe, o.stage, label, o.started_at, o.record_id;

COMMENT ON VIEW conflicts IS 'records that say otherwise than the record of their cell that counts: this workspace''s own, else that of the maker whose result arrived first';
COMMENT ON COLUMN conflicts.manifest IS 'experiment for which the record was made that does not count';
COMMENT ON COLUMN conflicts.recipe IS 'recipe of the record that counts';
COMMENT ON COLUMN conflicts.label IS 'task, or engine and workload';
COMMENT ON COLUMN conflicts.says IS 'result that does not count; of another variant or of other settings, the record is not what its cell_id says';
COMMENT ON COLUMN conflicts.counts IS 'result that counts';
COMMENT ON COLUMN conflicts.counts_origin IS 'workspace that made the record that counts';
COMMENT ON COLUMN conflicts.counts_own IS 'whether that is the workspace of this ledger';
COMMENT ON COLUMN conflicts.machine IS 'class of hardware of the record that does not count';
COMMENT ON COLUMN conflicts.counts_machine IS 'class of hardware of the record that counts';
COMMENT ON COLUMN conflicts.started_at IS 'start of the record that does not count, UTC';
COMMENT ON COLUMN conflicts.counts_started_at IS 'start of the record that counts, UTC';
COMMENT ON COLUMN conflicts.counts_record_id IS 'key of the base tables for the record that counts';
