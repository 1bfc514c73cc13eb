INSERT INTO base.structure
SELECT record_id, unnest(from_json(result, '{"absolute":["DOUBLE"],"relative":["DOUBLE"],"edges":["DOUBLE"]}'))
FROM incoming
WHERE done = 'structure';
