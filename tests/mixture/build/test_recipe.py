from pathlib import Path

import pytest

from vlmix.builders import known_sources
from vlmix.mixture.build.recipe import Recipe, load, parse
from vlmix.mixture.errors import VlmixError


def written(folder: Path, text: str) -> Path:
    path = folder / "r.yaml"
    path.write_text(text)
    return path


def test_builder_options_stand_beside_the_sampling_keys(tmp_path: Path) -> None:
    mine = "{builder: llava_json, path: a.json, ratio: 0.5}"
    text = f"name: x\nsources:\n  vg: {{take: 5, regions_per_image: 3}}\n  mine: {mine}\n"
    recipe = load(written(tmp_path, text), known_sources(), ["sources.vg.take=7", "seed=4", "sources.okvqa={}"])
    assert recipe.seed == 4
    assert recipe.sources["vg"].take == 7
    assert recipe.sources["vg"].options.regions_per_image == 3
    assert recipe.sources["mine"].builder == "llava_json"
    assert list(recipe.sources) == ["vg", "mine", "okvqa"]
    assert recipe.resolved()["sources"]["vg"]["options"]["min_side"] == 0.015


def test_every_packaged_recipe_parses(recipes: Path) -> None:
    files = sorted(file for file in recipes.rglob("*.yaml") if file.parent.name not in ("train", "sweep"))
    assert {"llava-1.5-665k", "lcs-558k", "llava-json", "sample"} <= {file.stem for file in files}
    assert len([file for file in files if file.parent.name == "ablation"]) == 7
    for file in files:
        assert isinstance(load(file, known_sources()), Recipe)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\nsources: {vqav2: {}}\nsede: 1", "unknown key 'sede'; did you mean 'seed'"),
        ("name: x\nsources: {vqa2: {}}", "no builder 'vqa2'; did you mean 'vqav2'"),
        ("name: x\nsources: {vg: {region_per_image: 3}}", "did you mean 'regions_per_image'"),
        ("name: x\nsources: {vg: {regions_per_image: 0}}", "sources.vg: `regions_per_image`.*>= 1, got 0"),
        ("name: x\nsources: {vqav2: {take: 0}}", "sources.vqav2: .*>= 1"),
        ("name: x\nsources: {vqav2: {take: 1.5}}", "sources.vqav2: .*int"),
        ("name: x\nsources: {vqav2: {ratio: 1.5}}", "sources.vqav2: .*<= 1"),
        ("name: x\nsources: {vqav2: {take: 1, ratio: 0.5}}", "exclude"),
        ("name: x\nsources: {vqav2: {weight: 1}}", "`total`"),
        ("name: x\nratio: 0.5\ntotal: 3\nsources: {vqav2: {}}", "exclude"),
        ("name: x\nstratify: false\nsources: {vqav2: {}}", "stratify"),
        ("name: x\nprompts: llama\nsources: {vqav2: {}}", "prompts"),
        ("name: x\nsources: {vqav2: {}, again: {builder: vqav2, ratio: 0.1}}", "vqav2 and sources.again read the same"),
        ("name: x\nsources: {vqav2: {repeat: .inf}}", "sources.vqav2: .*<= 1000"),
        ("name: x\nseed: 99999999999999999999999999\nsources: {vqav2: {}}", "seed"),
        ("name: x\nsources: {a: {builder: llava_json}, b: {builder: llava_json}}", "sources.a and sources.b"),
        ("name: x\nsources: {vqav2: {}}\nname: y", "'name' is a duplicate"),
        ("name: x\nsources: !!python/object/apply:os.system ['true']", "could not determine a constructor"),
        ("name: x\nsources: [vqav2]", "must map"),
        ("name: x", "`sources`"),
        ("sources: {vqav2: {}}", "missing key `name`"),
        ("[1, 2", "r.yaml"),
        ("just text", "mapping"),
        ("name: x\nsources: {1: {}}", "key 1 is not text"),
        ("name: x\nsources: {a: {builder: [gqa]}}", r"sources.a: there is no builder \['gqa'\]"),
        ("name: x\nsources: {a: {builder: {gqa: 1}}}", "sources.a: there is no builder"),
        ("name: x\nsources: &s {vqav2: *s}", "an alias that holds itself"),
        ("name: x\nseed: " + "9" * 5000, "r.yaml: "),
        ("name: x\nseed: 2026-13-45", "r.yaml: "),
        ("x: " + "[" * 5000, "nested too deeply"),
    ],
)
def test_mistakes_are_told_with_the_remedy(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(VlmixError, match=message):
        load(written(tmp_path, text), known_sources())


def test_anchors_and_merges_are_plain_yaml(tmp_path: Path) -> None:
    text = "name: x\nsources:\n  okvqa: &half {ratio: 0.5}\n  gqa:\n    <<: *half\n    seen: 1\n"
    with pytest.raises(VlmixError, match=r"sources.gqa: unknown key 'seen'"):
        load(written(tmp_path, text), known_sources())
    assert load(written(tmp_path, text.replace("    seen: 1\n", "")), known_sources()).sources["gqa"].ratio == 0.5


@pytest.mark.parametrize("form", ["{{<<: [{}]}}", "[{}]"])
def test_aliases_and_merges_that_multiply_are_refused(tmp_path: Path, form: str) -> None:
    levels = [f"m0: &m0 {{{', '.join(f'k{n}: 1' for n in range(10))}}}"]
    levels += [f"m{n}: &m{n} {form.format(', '.join([f'*m{n - 1}'] * 10))}" for n in range(1, 9)]
    with pytest.raises(VlmixError, match="r.yaml: with its aliases .* at most 100,000 are taken"):
        load(written(tmp_path, "\n".join(levels)), known_sources())


def test_an_override_must_name_a_key(tmp_path: Path) -> None:
    path = written(tmp_path, "name: x\nsources: {vqav2: {}}")
    for override, message in [("seed", "key=value"), ("name.x=1", "not a mapping"), ("sources.vqav2.tak=1", "take")]:
        with pytest.raises(VlmixError, match=message):
            load(path, known_sources(), [override])


def test_an_override_of_no_mapping_is_told(tmp_path: Path) -> None:
    for text in ("", "[1]"):
        with pytest.raises(VlmixError, match="seed=1: the recipe is not a mapping"):
            load(written(tmp_path, text), known_sources(), ["seed=1"])


def test_the_manifest_keeps_no_absolute_path() -> None:
    recipe = parse(
        {"name": "x", "sources": {"m": {"builder": "llava_json", "path": "/home/me/mix.json"}}}, known_sources()
    )
    assert recipe.resolved()["sources"]["m"]["options"]["path"] == "mix.json"


def test_british_spelling_of_license_names_the_key() -> None:
    with pytest.raises(VlmixError, match=r"unknown key 'licence'; did you mean 'license'\?"):
        parse({"name": "x", "sources": {"vqav2": {"licence": "MIT"}}}, known_sources())


def test_a_file_of_ones_own_may_not_be_called_after_a_dataset() -> None:
    with pytest.raises(VlmixError, match="gqa is the name of another dataset"):
        parse({"name": "x", "sources": {"gqa": {"builder": "llava_json", "path": "own.json"}}}, known_sources())


def test_entries_of_one_dataset_have_one_license() -> None:
    sources = {
        "a": {"builder": "llava_instruct", "part": "detail", "license": "MIT"},
        "b": {"builder": "llava_instruct", "part": "reasoning"},
    }
    with pytest.raises(VlmixError, match=r"sources\.b: entries of the builder llava_instruct"):
        parse({"name": "x", "sources": sources}, known_sources())
    sources["b"]["license"] = "MIT"
    assert parse({"name": "x", "sources": sources}, known_sources()).sources["b"].license == "MIT"


def test_a_recipe_extends_one_beside_it_or_one_that_comes_with_vlmix(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("name: base\nseed: 3\nsources: {vqav2: {take: 5}, gqa: {}}\n")
    (tmp_path / "mine.yaml").write_text("name: mine\nextends: base\nsources: {vqav2: {repeat: 2}, okvqa: {}}\n")
    recipe = load(tmp_path / "mine.yaml", known_sources(), ["sources.gqa.take=7"])
    assert (recipe.name, recipe.seed, list(recipe.sources)) == ("mine", 3, ["vqav2", "gqa", "okvqa"])
    assert (recipe.sources["vqav2"].take, recipe.sources["vqav2"].repeat, recipe.sources["gqa"].take) == (5, 2, 7)
    (tmp_path / "half.yaml").write_text("name: half\nextends: llava-1.5-665k\nratio: 0.5\n")
    assert len(load(tmp_path / "half.yaml", known_sources()).sources) > 9
    (tmp_path / "sample.yaml").write_text("name: sample\nextends: sample\nseed: 7\n")
    assert load(tmp_path / "sample.yaml", known_sources()).seed == 7, "of the same name as the packaged one"
    (tmp_path / "a.yaml").write_text("name: a\nextends: b\n")
    (tmp_path / "b.yaml").write_text("name: b\nextends: a\n")
    with pytest.raises(VlmixError, match="a circle"):
        load(tmp_path / "a.yaml", known_sources())
    (tmp_path / "c.yaml").write_text("name: c\nextends: nowhere\n")
    with pytest.raises(VlmixError, match="no such recipe"):
        load(tmp_path / "c.yaml", known_sources())
