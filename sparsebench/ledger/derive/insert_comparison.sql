INSERT INTO base.comparisons BY NAME
SELECT $record_id AS record_id, $dense_id AS dense_record_id, $n AS n, $difference AS difference, $low AS low, $high AS high,
       $p AS p, $gained AS gained, $lost AS lost, $method AS method, $higher_is_better AS higher_is_better,
       $clusters AS clusters, $detectable AS detectable, $chance AS chance, $loss_at_most AS loss_at_most, $retained AS retained, $retained_low AS retained_low,
       $retained_high AS retained_high;
