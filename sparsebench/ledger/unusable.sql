-- Scores that nothing can be said of: what a record's number is no number for, or too large, has become NULL.
SELECT record_id
FROM incoming
JOIN base.scores USING (record_id)
WHERE task IS NULL OR metric IS NULL OR score IS NULL OR n IS NULL OR n < 1;
