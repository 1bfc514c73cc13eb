INSERT INTO base.makings BY NAME
SELECT record_id, unnest(from_json(result, '{"prunable":"BIGINT","zeros":"BIGINT","parameters":"BIGINT",
    "total_zeros":"BIGINT","achieved":"DOUBLE","achieved_all":"DOUBLE","seconds":"DOUBLE","sweep_size":"INTEGER",
    "peak_rss_bytes":"BIGINT","note":"VARCHAR","calibration_tokens":"BIGINT","calibration_sha256":"VARCHAR","bits":"DOUBLE","rounded_to_zero":"BIGINT","relative_error":"DOUBLE",
    "already_zero":"BIGINT","trained_tokens":"BIGINT","operations":"DOUBLE","read_share":"DOUBLE",
    "joules":"DOUBLE","energy_source":"VARCHAR"}'))
FROM incoming
WHERE done = 'make';
