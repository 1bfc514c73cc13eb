-- How a difference is judged, and how many documents show one. Nothing here reads a table: Python calls the same macros for scores that are in no ledger
-- (ledger/statistics).

-- A p value of a family of tests after Holm's correction (Scandinavian J. of Statistics 6, 65-70, 1979): each is multiplied by
-- the number of p values as large or larger; none is corrected to less than a smaller one.
CREATE OR REPLACE MACRO _holm(p, family) AS
    list_max(list_transform(list_filter(family, lambda q: q <= p),
                            lambda q: least(1.0, q * len(list_filter(family, lambda r: r >= q)))));

-- `p` is corrected; NULL where nothing was compared.
CREATE OR REPLACE MACRO _verdict(difference, p, higher_is_better) AS
    CASE WHEN difference IS NULL OR p IS NULL THEN NULL
         WHEN p >= 0.05 OR difference = 0 THEN 'no difference detected'
         WHEN (difference > 0) = higher_is_better THEN 'better'
         ELSE 'worse' END;

-- Whether the interval of a score reaches that of a model without skill. False where either is not known.
CREATE OR REPLACE MACRO _at_chance(low, high, chance, higher_is_better) AS coalesce(if(higher_is_better, low <= chance, high >= chance), false);

-- What overrides a test. A task that cannot tell dense from a model without skill is invalid. A collapsed model has lost, whatever the test
-- says. A model that shows neither a difference nor skill is at chance.
CREATE OR REPLACE MACRO _overridden(verdict, separable, collapsed, at_chance) AS
    CASE WHEN separable IS false THEN 'invalid' WHEN collapsed THEN 'collapsed' WHEN at_chance
        AND verdict = 'no difference detected' THEN 'at chance' ELSE verdict END;

-- The one criterion of a loss, for every table, figure and headline.
CREATE OR REPLACE MACRO _lost(verdict) AS verdict IN ('worse', 'collapsed', 'at chance');

-- The test of non-inferiority: `loss_at_most` is a one-sided 95% limit.
CREATE OR REPLACE MACRO _loses_less(loss_at_most, margin) AS loss_at_most < margin;

-- Student's t at 0.975 by Cornish and Fisher: accurate to 0.3% from nine degrees of freedom on.
CREATE OR REPLACE MACRO t_975(freedom) AS 1.959964 + 2.372271 / freedom + 2.822500 / freedom ** 2;

-- Half of the 95% interval of a ratio of sums over `windows`: `rest` is the sum of the squares that the ratio leaves over, `tokens` the divisor.
CREATE OR REPLACE MACRO _ratio_half(rest, windows, tokens) AS t_975(windows - 1) * sqrt(greatest(rest, 0) * windows / (windows - 1)) / tokens;

-- How a difference in time is judged. All are logarithms of dense time over variant time: the ratio, its 95% interval and the noise floor.
CREATE OR REPLACE MACRO _timed_verdict(shift, low, high, noise, steady) AS
    CASE WHEN noise IS NULL THEN 'no noise floor'
         WHEN NOT steady AND low <= noise AND high >= -noise THEN 'not steady'
         WHEN low > 0 AND shift > noise THEN 'faster'
         WHEN high < 0 AND -shift > noise THEN 'slower'
         ELSE 'no difference detected' END;

-- Documents that show a loss below `margin` with a power of 80%, if the loss is the one observed on `n` documents that do not show it.
-- NULL where the observed loss reaches the margin, or `n` suffices. The limit's t quantile is Cornish and Fisher's.
CREATE OR REPLACE MACRO _documents_to_clear(n, freedom, loss, loss_at_most, margin) AS
    CASE WHEN loss_at_most >= margin AND loss < margin THEN
        ceil(n * ((1.6448536269514722 + 0.8416212335729143) * (loss_at_most - loss) / (1.6449 + 1.524 / freedom + 1.42 / freedom ** 2) / (margin - greatest(loss, 0))) ** 2)::BIGINT END;

-- Documents on which a variant that loses nothing is shown to lose less than `margin`, with a power of 80% at 5%, one-sided.
CREATE OR REPLACE MACRO documents_to_clear(margin, discordance) AS
    ceil(((1.6448536269514722 + 0.8416212335729143) / margin) ** 2 * discordance)::BIGINT;

-- Documents on which a true loss shows with a power of 80% at p < 0.05 (McNemar; Connor's formula, Biometrics 43, 207-211, 1987), when
-- exactly one of the models is right on a share `discordance` of them.
CREATE OR REPLACE MACRO documents_needed(loss, discordance) AS
    ceil(((1.959963984540054 * sqrt(greatest(discordance, loss)) + 0.8416212335729143 * sqrt(greatest(discordance,
        loss) - loss ** 2)) / loss) ** 2)::BIGINT;
