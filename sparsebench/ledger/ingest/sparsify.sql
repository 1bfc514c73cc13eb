INSERT INTO base.sparsify
SELECT record_id, unnest(from_json(result, '{"prunable":"BIGINT","zeros":"BIGINT","parameters":"BIGINT",
    "total_zeros":"BIGINT","achieved":"DOUBLE","achieved_all":"DOUBLE","seconds":"DOUBLE","sweep_size":"INTEGER",
    "peak_rss_bytes":"BIGINT","note":"VARCHAR","calibration_tokens":"BIGINT","calibration_sha256":"VARCHAR"}'))
FROM incoming
WHERE done = 'sparsify';
