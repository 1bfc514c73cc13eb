-- The variants that were asked for, and what their making counted: one row per variant.
CREATE OR REPLACE VIEW variants AS
WITH made AS (
    SELECT variant_id, arg_max(prunable, started_at) AS prunable, arg_max(parameters, started_at) AS parameters,
           arg_max(zeros, started_at) AS zeros, arg_max(total_zeros, started_at) AS total_zeros,
           arg_max(already_zero, started_at) AS already_zero,
           arg_max(rounded_to_zero, started_at) AS rounded_to_zero, arg_max(bits, started_at) AS bits,
           arg_max(m.seconds, started_at) AS seconds, arg_max(trained_tokens, started_at) AS trained_tokens,
           arg_max(operations, started_at) AS operations, arg_max(read_share, started_at) AS read_share,
           -- Where the newest making has no counter, an older one's joules do not count.
           arg_max_null(joules, started_at) AS joules, arg_max_null(energy_source, started_at) AS energy_source,
           arg_max(note, started_at) AS note
    FROM _counted
    JOIN base.makings m USING (record_id)
    GROUP BY variant_id
), whole AS (
    -- The dense model's parameters come from its structure: no step makes it, so no step has counted them.
    -- Manifests may name one checkpoint differently; random weights have nothing but their name.
    SELECT if(v.weights = 'random', v.model, '') AS named, v.family, v.revision, v.dtype, v.weights, max(t.parameters) AS dense_parameters
    FROM base.variants v
    JOIN (
        SELECT r.variant_id, r.record_id, sum(count) AS parameters
        FROM _counted r
        JOIN base.structure_tensors USING (record_id)
        GROUP BY ALL
    ) t USING (variant_id)
    WHERE v.recipe = 'dense'
    GROUP BY ALL
), counted AS (
    SELECT variant_id, arg_max(operations_token, started_at) AS operations_token
    FROM _counted
    JOIN base.structure USING (record_id)
    GROUP BY variant_id
)
SELECT variant_id, v.model, v.family, v.weights, source, v.revision, v.dtype, recipe, parent, seed, calibration, prunable, parameters,
       1 - coalesce(parameters, if(recipe = 'dense', dense_parameters, NULL)) / dense_parameters AS parameters_removed,
       -- A weight takes one multiplication and one addition per token: a skipped one saves two operations.
       operations_token - 2 * (1 - coalesce(read_share, 1)) * coalesce(prunable, 0) AS operations_token, zeros, already_zero, total_zeros,
       rounded_to_zero, nullif(bits, 0) AS bits, seconds, nullif(trained_tokens, 0) AS trained_tokens,
       nullif(operations, 0) AS operations, joules, nullif(energy_source, '') AS energy_source,
       coalesce(read_share, 1) AS read_share, note, c.content
FROM base.variants v
LEFT JOIN made USING (variant_id)
LEFT JOIN counted USING (variant_id)
LEFT JOIN whole w ON (w.named, w.family, w.revision, w.dtype, w.weights) = (if(v.weights = 'random', v.model, ''), v.family,
    v.revision, v.dtype, v.weights)
LEFT JOIN _contents c USING (variant_id);

COMMENT ON VIEW variants IS 'every model and every variant of it: its parent, its recipe, and what was counted when it was made';
COMMENT ON COLUMN variants.model IS 'name of the model in the manifest that named it first';
COMMENT ON COLUMN variants.prunable IS 'weights that pruning may touch: linear weights inside transformer blocks';
COMMENT ON COLUMN variants.parameters IS 'all parameters, tied ones once';
COMMENT ON COLUMN variants.parameters_removed IS 'share of the dense model''s parameters that the variant lacks, 0 to 1; below 0 where it has more (biases); NULL where no structure of the dense model was measured';
COMMENT ON COLUMN variants.operations_token IS 'floating-point operations per token, from the shapes, in a forward pass over 512 tokens; zeros count, weights that skip or moefy leave out do not (read_share); NULL where no structure was measured, and for mixtures of experts';
COMMENT ON COLUMN variants.zeros IS 'prunable weights that are exactly zero';
COMMENT ON COLUMN variants.already_zero IS 'of these zeros, those that the last step''s input had; the step made the others';
COMMENT ON COLUMN variants.total_zeros IS 'parameters that are exactly zero';
COMMENT ON COLUMN variants.rounded_to_zero IS 'weights that pruning had kept and a quantizer rounded to zero';
COMMENT ON COLUMN variants.bits IS 'mean bits per prunable weight, scales included; NULL where none was quantized';
COMMENT ON COLUMN variants.seconds IS 'duration of the pass that made it, s; one pass may make several variants';
COMMENT ON COLUMN variants.trained_tokens IS 'tokens that its last step was trained on, every epoch counted; NULL where nothing was trained';
COMMENT ON COLUMN variants.operations IS 'floating-point operations of its training, by blocks or as a whole, the dense model''s or other teachers'' included; NULL where nothing was trained';
COMMENT ON COLUMN variants.joules IS 'energy of its training, J, of everything that energy_source counts: all that ran on the processors or GPUs meanwhile; NULL without a counter, and where nothing was trained';
COMMENT ON COLUMN variants.energy_source IS 'the counters behind joules (RAPL packages, NVML), or why there is none; NULL where nothing was trained';
COMMENT ON COLUMN variants.read_share IS 'share of the prunable weights that one token reads, 0 to 1, a router''s own included; below 1 where inputs or experts are skipped';
COMMENT ON COLUMN variants.note IS 'remarks on its making, such as damping that had to be raised';
COMMENT ON COLUMN variants.content IS 'checksum of the weights whose measurements count';

CREATE OR REPLACE VIEW steps AS
SELECT variant_id, position, step, name, field, value ->> '$' AS value FROM base.steps ORDER BY variant_id, position, field;

COMMENT ON VIEW steps IS 'the steps of every variant, one row per setting';
COMMENT ON COLUMN steps.position IS 'position of the step in the recipe, from 1';
COMMENT ON COLUMN steps.step IS 'verb of the step: prune, quantize, …';
COMMENT ON COLUMN steps.name IS 'method of the step, such as wanda or int8';
COMMENT ON COLUMN steps.field IS 'a setting of the step; NULL where it has none';
COMMENT ON COLUMN steps.value IS 'value of that setting';

-- Variants with a step other than prune: fewer bits, smaller shapes, training, skipping.
CREATE OR REPLACE VIEW _more_than_zeros AS SELECT DISTINCT variant_id FROM base.steps WHERE step <> 'prune';

-- The recipe for figures and tables: its kinds in order (`zeros + bits`), a few words (`sparsegpt 50%, int8`), and whether a step
-- chooses at random. The words name what is not usual in this ledger: a method's granularity, pattern, allocation, calibration.
CREATE OR REPLACE VIEW _recipes AS
WITH settings AS (
    SELECT variant_id, position, step, name, percent_label(max(TRY_CAST(value AS DOUBLE)) FILTER (field = 'sparsity')) || '%' AS sparsity,
           max(value) FILTER (field = 'granularity') AS granularity, nullif(max(value) FILTER (field = 'pattern'), 'unstructured') AS pattern,
           nullif(max(value) FILTER (field = 'allocation'), 'uniform') AS allocation,
           -- A result of ADMM means nothing without its budget of tokens.
           max(format('({:.3g}M tokens)', TRY_CAST(value AS DOUBLE) / 1e6)) FILTER (name = 'elsa' AND field = 'tokens') AS budget,
           coalesce(max(upper(value)) FILTER (field = 'rounding' AND value = 'gptq'),
               max('searched') FILTER (field = 'scale' AND value = 'search')) AS rounding,
           max(value) FILTER (field = 'type') || if(bool_or(field = 'importance' AND value = 'true'), ' (importance)', '') AS type,
           coalesce(percent_label(1 - max(TRY_CAST(value AS DOUBLE)) FILTER (field = 'parameters')) || '%',
                    format('-{} block{}', max(value) FILTER (field = 'blocks'),
                        if(max(value) FILTER (field = 'blocks') = '1', '', 's'))) AS removed,
           percent_label(max(TRY_CAST(value AS DOUBLE)) FILTER (field = 'share')) || '%' AS share,
           percent_label(max(TRY_CAST(value AS DOUBLE)) FILTER (field = 'active')) || '%' AS active,
           max(value) FILTER (field = 'router') AS router
    FROM steps
    GROUP BY variant_id, position, step, name
), usual AS (
    SELECT name, granularity
    FROM settings
    WHERE step = 'prune' AND granularity IS NOT NULL
    GROUP BY name, granularity
    QUALIFY row_number() OVER (PARTITION BY name ORDER BY count(*) DESC, granularity) = 1
), words AS (
    SELECT variant_id, position, step, name,
           -- Behind the step that it belongs to: the last pruning step, as `ways` has it, else the last.
           if(row_number() OVER (PARTITION BY variant_id ORDER BY step = 'prune' DESC, position DESC) = 1,
               coalesce(calibrated, ''), '') AS calibrated,
           CASE step WHEN 'prune' THEN concat_ws(' ',
               concat(name, '+' || allocation, if(s.granularity = u.granularity OR pattern LIKE '%:%', '', '/' || s.granularity)),
                                                 pattern, if(pattern LIKE '%:%', NULL, sparsity), budget)
                     WHEN 'quantize' THEN coalesce(type, concat_ws(' ', name, rounding))
                     WHEN 'shrink' THEN concat_ws(' ', name, removed)
                     WHEN 'trim' THEN 'vocabulary trimmed'
                     WHEN 'recover' THEN CASE name WHEN 'reconstruct' THEN 'blocks trained' WHEN 'distill' THEN 'distilled' ELSE 'trained' END
                     WHEN 'skip' THEN concat_ws(' ', name, share, allocation)
                     WHEN 'moefy' THEN concat(name, ' ', active, ' by ', router)
                     ELSE name END AS word
    FROM settings s
    LEFT JOIN usual u USING (name)
    LEFT JOIN (SELECT variant_id, max(calibrated) AS calibrated FROM ways GROUP BY variant_id) USING (variant_id)
), kinds AS (
    SELECT variant_id, string_agg(kind, ' + ' ORDER BY position) AS kind
    FROM (SELECT variant_id, _kind(step) AS kind, min(position) AS position FROM words GROUP BY ALL)
    GROUP BY variant_id
)
SELECT variant_id, kind, string_agg(word || calibrated, ', ' ORDER BY position) AS words, bool_or(name LIKE 'random%') AS chance
FROM words
JOIN kinds USING (variant_id)
GROUP BY variant_id, kind;
