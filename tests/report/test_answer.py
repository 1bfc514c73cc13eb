from sparsebench.report.answer import QueryResult, pipe_table

ROWS = QueryResult(
    "select 1",
    (
        {"model": "a", "weights": "real", "sparsity": 0.5, "score": 0.7},
        {"model": "b", "weights": "random", "sparsity": 0.5, "score": None},
        {"model": "a", "weights": "real", "sparsity": 0.1, "score": 0.75},
    ),
)


def test_numbers_stand_to_the_right_and_a_cell_is_one_line_without_pipes() -> None:
    shown = pipe_table(["a|b", "n"], [["x|y", "−1.5"], ["it broke\n  → mend it", "<0.1%"]])
    assert shown.splitlines() == [
        "| a\\|b | n |",
        "| --- | --: |",
        "| x\\|y | −1.5 |",
        "| it broke → mend it | <0.1% |",
    ]
    few, many = "×1.81 (hf)", "×1.44 (hf, AVX-512 BF16; none shown on AVX2)"
    assert pipe_table(["few", "many"], [[few, many], [few, few]]).splitlines()[1] == "| --: | --- |"
    assert pipe_table(["n"], [["**30.16**"], ["collapsed (2.4e5)"], ["–"]]).splitlines()[1] == "| --: |"


def test_a_column_in_which_nothing_is_known_is_left_out() -> None:
    assert ROWS.where(model="b").table({"model": "{model}", "score": "{score:.2f}"}) == "| model |\n| --- |\n| b |"


def test_a_setting_that_is_the_same_in_many_rows_is_told_once() -> None:
    many = QueryResult("", tuple({"m": f"m{n}", "dtype": "BF16", "told": "no gain"} for n in range(4)))
    columns = {"model": "{m}", "number format": "{dtype}", "verdict": "{told}"}
    lines = many.table(columns).splitlines()
    assert lines[0] == "| model | verdict |" and lines[2] == "| m0 | no gain |"
    assert lines[-2:] == ["", "In every row number format: BF16."]
    assert QueryResult("", many.rows[:3]).table(columns).splitlines()[0] == "| model | number format | verdict |"


def test_rows_are_chosen_and_keep_their_order() -> None:
    assert [(first["model"], len(part)) for first, part in ROWS.groups("model")] == [("a", 2), ("b", 1)]
    assert [row["model"] for row in ROWS.with_random_weights(True)] == ["b"] and len(
        ROWS.with_random_weights(False)
    ) == 2
    assert [row["sparsity"] for row in ROWS.head_per_group(1, "model")] == [0.5, 0.5]
    assert [row["sparsity"] for row in ROWS.without(model="a", sparsity=0.5)] == [0.5, 0.1]


def test_a_matrix_has_sparsities_across_and_each_known_value_of_a_place_once() -> None:
    assert ROWS.where(model="a").matrix("{model}", "{score:.2f}", "model") == (
        "| model | 10% | 50% |\n| --- | --: | --: |\n| a | 0.75 | 0.70 |"
    )
    twice = QueryResult("", ({"m": "a", "sparsity": 0.5, "v": 1}, {"m": "a", "sparsity": 0.5, "v": 2}))
    assert "| a | 1 / 2 |" in twice.matrix("{m}", "{v}")
    rows = [("a", 0.1, 1), ("a", 0.1, 1), ("a", 0.1, None), ("b", 0.1, None), ("b", 0.5, None)]
    answer = QueryResult("", tuple({"m": m, "sparsity": s, "v": v} for m, s, v in rows))
    assert answer.matrix("{m}", "{v}") == "|  | 10% |\n| --- | --: |\n| a | 1 |"
    assert answer.where(m="b").matrix("{m}", "{v}") == ""


def test_the_longest_sweeps_at_the_usual_sparsities() -> None:
    every = (0.1, 0.3, 0.5, 0.7, 0.9, 0.95, 0.99)
    steps = {"long": every, "short": (0.5,), "second": every[:6]}
    rows = tuple({"label": label, "sparsity": step} for label, sparsities in steps.items() for step in sparsities)
    kept = QueryResult("", rows).sweeps(2)
    assert kept.values("label") == ["long", "second"]
    assert kept.values("sparsity") == [0.1, 0.5, 0.7, 0.95], "0.99 is one label's alone"


def test_rows_of_an_unknown_sparsity_have_no_place_in_a_matrix() -> None:
    """Masks from a file name no sparsity until the variant is made."""
    rows = [("a", 0.5, 1), ("a", None, 2), ("b", None, 3)]
    answer = QueryResult("", tuple({"label": label, "sparsity": sparsity, "v": v} for label, sparsity, v in rows))
    assert answer.matrix("{label}", "{v}") == "|  | 50% |\n| --- | --: |\n| a | 1 |"
    assert [row["v"] for row in answer.sweeps(2)] == [1]
    assert not answer.where(sparsity=None).sweeps(1) and answer.where(sparsity=None).matrix("{label}", "{v}") == ""
