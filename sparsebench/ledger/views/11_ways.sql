CREATE OR REPLACE VIEW ways AS
WITH texts AS (
    SELECT text, row_number() OVER (ORDER BY count(DISTINCT variant_id) FILTER (status = 'done') DESC, text) AS number
    FROM (SELECT variant_id, status, regexp_replace(calibration, ' seed \d+$', '') AS text FROM cells WHERE calibration <> '')
    GROUP BY text
), made AS (
    SELECT DISTINCT variant_id, model, weights, method, granularity, pattern, beside,
           if(propagate = 'dense', ', dense inputs', '') AS inputs, text, number AS text_number
    FROM _cells cells
    LEFT JOIN texts ON text = regexp_replace(calibration, ' seed \d+$', '')
), usual AS (
    -- The calibration that made most of a model's variants by this method.
    SELECT model, weights, method, text_number, inputs
    FROM made
    WHERE text_number IS NOT NULL
    GROUP BY model, weights, method, text_number, inputs
    QUALIFY row_number() OVER (PARTITION BY model, weights, method ORDER BY count(DISTINCT variant_id) DESC, text_number, inputs) = 1
)
SELECT DISTINCT variant_id, m.inputs, text, m.text_number,
       coalesce(', ' || nullif(beside, ''), '') || m.inputs || if(m.text_number > 1, ', text ' || m.text_number, '') AS way,
       method_label(method, granularity, if(pattern LIKE '%:%', 'N:M', pattern)) || coalesce(', ' || nullif(beside, ''), '') || m.inputs AS line,
       CASE WHEN m.text_number <> u.text_number
           OR m.inputs <> u.inputs THEN format(' (text {}{})', m.text_number, if(m.inputs = '', '', 'd'))
           ELSE '' END AS calibrated
FROM made m
LEFT JOIN usual u USING (model, weights, method);

COMMENT ON VIEW ways IS 'how variants of the same method, granularity and pattern were made and calibrated, so that labels tell them apart';
COMMENT ON COLUMN ways.variant_id IS 'the variant';
COMMENT ON COLUMN ways.inputs IS '", dense inputs" for dense-activation calibration, else empty';
COMMENT ON COLUMN ways.text IS 'the calibration without its seed: source, field, samples x tokens; NULL where none was read';
COMMENT ON COLUMN ways.text_number IS 'that text''s number in this ledger: 1 made most variants; NULL where none was read';
COMMENT ON COLUMN ways.way IS 'the rest of the recipe, the inputs, and the text''s number where it is not the usual one, 1';
COMMENT ON COLUMN ways.line IS 'name of the line on which figures draw the variant: method, granularity or pattern, rest of the recipe, inputs';
COMMENT ON COLUMN ways.calibrated IS 'the calibration in brackets, such as (text 2), or (text 2d) with dense inputs, where it is not the one that made most of the model''s variants by this method; else empty';
