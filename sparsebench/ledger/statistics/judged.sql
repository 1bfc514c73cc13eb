SELECT _holm(p, $p::DOUBLE[]) AS p_holm, _verdict(difference, p_holm, higher_is_better) AS verdict
FROM (SELECT unnest($p::DOUBLE[]) AS p, unnest($difference::DOUBLE[]) AS difference, unnest($higher_is_better::BOOLEAN[]) AS higher_is_better);
