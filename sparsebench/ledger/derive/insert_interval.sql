INSERT INTO base.intervals VALUES ($record_id, $low, $high, $method);
