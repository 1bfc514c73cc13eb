INSERT INTO base.storage
SELECT record_id, unnest(from_json(result, '{"prunable":"BIGINT","nonzero":"BIGINT","raw_value_bound":"DOUBLE",
    "entropy_bound":"DOUBLE","unprunable_bytes":"BIGINT","folder_bytes":"BIGINT"}'))
FROM incoming
WHERE done = 'storage';
