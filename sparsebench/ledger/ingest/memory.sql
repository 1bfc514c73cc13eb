INSERT INTO base.memory
WITH typed AS (
    SELECT record_id, from_json(result, '{"engine":"VARCHAR","kernel":"VARCHAR","ranks":"INTEGER","threads":"INTEGER",
        "device":"VARCHAR","dtype":"VARCHAR","source":"VARCHAR","peak_bytes":"BIGINT",
        "parity":{"relative_l2":"DOUBLE","wraps_only":"BOOLEAN"},"before":{"load":"DOUBLE"},"after":{"load":"DOUBLE"},
        "notes":["VARCHAR"]}') AS m
    FROM incoming
    WHERE done = 'memory'
)
SELECT record_id, m.engine, m.kernel, m.ranks, m.threads, m.device, m.dtype, m.source, m.peak_bytes,
       m.parity.relative_l2, m.parity.wraps_only, m.before.load, m.after.load, m.notes
FROM typed;
