INSERT INTO base.intervals BY NAME
SELECT unnest($record_id::VARCHAR[]) AS record_id, unnest($low::DOUBLE[]) AS low, unnest($high::DOUBLE[]) AS high, unnest($method::VARCHAR[]) AS method;
