INSERT INTO base.comparisons BY NAME
SELECT unnest($record_id::VARCHAR[]) AS record_id, unnest($dense_id::VARCHAR[]) AS dense_record_id, unnest($n::BIGINT[]) AS n,
       unnest($difference::DOUBLE[]) AS difference, unnest($low::DOUBLE[]) AS low, unnest($high::DOUBLE[]) AS high, unnest($p::DOUBLE[]) AS p,
       unnest($gained::BIGINT[]) AS gained, unnest($lost::BIGINT[]) AS lost, unnest($method::VARCHAR[]) AS method,
       unnest($higher_is_better::BOOLEAN[]) AS higher_is_better, unnest($clusters::BIGINT[]) AS clusters,
       unnest($detectable::DOUBLE[]) AS detectable, unnest($chance::DOUBLE[]) AS chance, unnest($loss_at_most::DOUBLE[]) AS loss_at_most,
       unnest($retained::DOUBLE[]) AS retained, unnest($retained_low::DOUBLE[]) AS retained_low, unnest($retained_high::DOUBLE[]) AS retained_high;
