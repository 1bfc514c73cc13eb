INSERT INTO base.latency
WITH typed AS (
    SELECT record_id, from_json(result, '{"engine":"VARCHAR","kernel":"VARCHAR","ranks":"INTEGER","threads":"INTEGER",
        "device":"VARCHAR","dtype":"VARCHAR","baseline":"VARCHAR","parity":{"relative_l2":"DOUBLE","tolerance":"DOUBLE",
        "dtype":"VARCHAR","blocks":"INTEGER","wraps_only":"BOOLEAN"},"before":{"load":"DOUBLE","mhz":"DOUBLE"},
        "after":{"load":"DOUBLE","affinity":"INTEGER","governor":"VARCHAR","mhz":"DOUBLE"},"notes":["VARCHAR"],
        "energy_source":"VARCHAR","placement":"VARCHAR","stolen":"DOUBLE","read_bytes_per_second":"DOUBLE"}') AS m
    FROM incoming
    WHERE done = 'latency'
)
SELECT record_id, m.engine, m.kernel, m.ranks, m.threads, m.device, m.dtype, m.baseline, m.parity.relative_l2,
       m.parity.tolerance, m.parity.dtype, m.parity.blocks, m.parity.wraps_only, m.before.load, m.after.load,
       m.after.affinity, m.after.governor, m.notes, m.before.mhz, m.after.mhz, m.energy_source, m.placement, m.stolen,
       m.read_bytes_per_second
FROM typed;
