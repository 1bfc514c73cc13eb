SELECT _holm(p, $p::DOUBLE[]) AS p_holm, _overridden(_verdict(difference, p_holm, higher_is_better), separable, collapsed, at_chance) AS verdict
FROM (SELECT unnest($p::DOUBLE[]) AS p, unnest($difference::DOUBLE[]) AS difference, unnest($higher_is_better::BOOLEAN[]) AS higher_is_better,
             unnest($separable::BOOLEAN[]) AS separable, unnest($collapsed::BOOLEAN[]) AS collapsed, unnest($at_chance::BOOLEAN[]) AS at_chance);
