INSERT INTO base.curves
SELECT record_id, unnest(from_json(result -> '$.curve', '[{"step":"BIGINT","tokens":"BIGINT","loss":"DOUBLE","held_out":"DOUBLE"}]'),
    recursive := true)
FROM incoming
WHERE done = 'make';
