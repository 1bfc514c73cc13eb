CREATE OR REPLACE VIEW ways AS
WITH texts AS (
    SELECT text, row_number() OVER (ORDER BY count(DISTINCT variant_id) FILTER (status = 'done') DESC, text) AS number
    FROM (SELECT variant_id, status, regexp_replace(calibration, ' seed \d+$', '') AS text FROM cells WHERE calibration <> '')
    GROUP BY text
)
SELECT DISTINCT variant_id, if(propagate = 'dense', ', dense inputs', '') AS inputs, text, number AS text_number,
       coalesce(', ' || nullif(beside, ''), '') || inputs || if(number > 1, ', text ' || number, '') AS way,
       method_label(method, granularity, if(pattern LIKE '%:%', 'N:M', pattern)) || coalesce(', ' || nullif(beside, ''), '') || inputs AS line
FROM _cells cells
LEFT JOIN texts ON text = regexp_replace(calibration, ' seed \d+$', '');

COMMENT ON VIEW ways IS 'how variants of the same method, granularity and pattern were made and calibrated, so that labels tell them apart';
COMMENT ON COLUMN ways.variant_id IS 'the variant';
COMMENT ON COLUMN ways.inputs IS '", dense inputs" for dense-activation calibration, else empty';
COMMENT ON COLUMN ways.text IS 'the calibration without its seed: source, field, samples x tokens; NULL where none was read';
COMMENT ON COLUMN ways.text_number IS 'that text''s number in this ledger: 1 made most variants; NULL where none was read';
COMMENT ON COLUMN ways.way IS 'the rest of the recipe, the inputs, and the text''s number where it is not the usual one, 1';
COMMENT ON COLUMN ways.line IS 'name of the line on which figures draw the variant: method, granularity or pattern, rest of the recipe, inputs';
