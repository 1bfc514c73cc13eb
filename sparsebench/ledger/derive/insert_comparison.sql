INSERT INTO base.comparisons
VALUES ($record_id, $dense_id, $n, $difference, $low, $high, $p, $gained, $lost, $method, $higher_is_better);
