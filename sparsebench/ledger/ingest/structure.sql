INSERT INTO base.structure BY NAME
SELECT record_id, unnest(from_json(result, '{"absolute":["DOUBLE"],"relative":["DOUBLE"],"edges":["DOUBLE"],"operations_token":"DOUBLE"}'))
FROM incoming
WHERE done = 'structure';
