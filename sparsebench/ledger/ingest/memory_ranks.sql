INSERT INTO base.memory_ranks
SELECT record_id, unnest(from_json(result -> '$.per_rank', '[{"rank":"INTEGER","phase":"VARCHAR","peak_rss_bytes":"BIGINT",
    "peak_bytes":"BIGINT","anon_bytes":"BIGINT","pss_bytes":"BIGINT","tensor_bytes":"BIGINT","baseline_bytes":"BIGINT",
    "cuda_allocated_bytes":"BIGINT","cuda_reserved_bytes":"BIGINT","cuda_process_bytes":"BIGINT","cache_bytes":"BIGINT"}]'), recursive := true)
FROM incoming
WHERE done = 'memory';
