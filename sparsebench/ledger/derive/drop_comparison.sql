DELETE FROM base.comparisons WHERE record_id = $record_id AND dense_record_id = $dense_id;
