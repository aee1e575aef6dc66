"""The checkpoint that ships is what its script writes, small, and says that it is untrained."""

from safetensors.torch import load_file

from deployments.demo.video import FOLDER, README, pipeline, tokenizer


def test_the_committed_weights_are_those_of_the_script() -> None:
    pipe = pipeline()
    for name in ("transformer", "vae"):
        stored = load_file(FOLDER / name / "diffusion_pytorch_model.safetensors")
        fresh = getattr(pipe, name).state_dict()
        assert stored.keys() == fresh.keys()
        assert all(stored[key].allclose(fresh[key], atol=1e-6) for key in stored)


def test_it_is_small_and_honest() -> None:
    assert sum(file.stat().st_size for file in FOLDER.rglob("*") if file.is_file()) < 1_000_000
    assert (FOLDER / "README.md").read_text(encoding="utf-8") == README
    assert "untrained" in README


def test_unknown_words_are_one_token_and_the_end_is_marked() -> None:
    words = tokenizer()
    assert words.convert_ids_to_tokens(words("A Red zyx").input_ids) == ["a", "red", "<unk>", "</s>"]
