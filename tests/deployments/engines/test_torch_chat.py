"""Prompts equal those of transformers, and no message can write a control token."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer
from torch_checkpoint import SPECIAL, TEMPLATE, save_tokenizer
from transformers import AutoTokenizer

from cluster.errors import CheckpointError, ContextTooLong, InvalidRequest
from cluster.inputs import Media
from cluster.request import Message
from deployments.engines.torch_engine.chat import ChatTokenizer

DEMO = Path(__file__).parents[3] / "deployments" / "demo" / "checkpoints" / "pro"
CONTEXT_TOKENS = 512
CHAT = (
    Message(role="system", content="Be brief."),
    Message(role="user", content="  What is 12 + 7?\n"),
    Message(role="assistant", content="19 — naïve 🐍"),
    Message(role="user", content="Why?"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat")
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def chat(folder: Path) -> ChatTokenizer:
    return ChatTokenizer(folder, CONTEXT_TOKENS)


def user(content: str) -> list[Message]:
    return [Message(role="user", content=content)]


@pytest.mark.parametrize("where", ["tiny", "demo"])
def test_prompts_equal_those_of_transformers(folder: Path, where: str) -> None:
    source = folder if where == "tiny" else DEMO
    theirs = AutoTokenizer.from_pretrained(source).apply_chat_template(
        [{"role": m.role, "content": m.content} for m in CHAT], add_generation_prompt=True, return_dict=False
    )
    assert list(ChatTokenizer(source, CONTEXT_TOKENS).encode(CHAT)) == theirs


@settings(deadline=None)
@given(
    content=st.lists(st.sampled_from([*SPECIAL, "<|im_", "end|>", "\n", "a", "﷐", "<"]) | st.text(max_size=3)).map(
        "".join
    )
)
def test_a_message_never_becomes_a_control_token_and_keeps_its_text(chat: ChatTokenizer, content: str) -> None:
    tokens = chat.encode(user(content))
    control = {0, 1, 2}
    assert [token for token in tokens if token in control] == [1, 2, 1], "those of the template alone"
    assert b"".join(chat.bytes_of[t] for t in tokens).decode() == f"user\n{content}\n" + "assistant\n"


def test_what_stands_beside_text_is_written_in_its_place_and_its_tokens_count(chat: ChatTokenizer) -> None:
    media = tuple(Media(kind="image", at=at, where="") for at in (0, 3))
    said = [Message(role="user", content="the sea", media=media), *user("moray")]
    beside = ["<|endoftext|>", "12<|endoftext|>"]
    tokens = chat.encode(said, (), beside)
    assert [token for token in tokens if token in {0, 1, 2}] == [1, 0, 0, 2, 1, 2, 1]
    written = b"".join(chat.bytes_of[token] for token in tokens)
    assert b"the12 sea" in written


def test_a_template_that_leaves_inputs_out_is_told_of(tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}")
    media = (Media(kind="image", at=0, where=""),)
    said = [*user("a"), Message(role="user", content="b", media=media)]
    with pytest.raises(InvalidRequest, match="writes 0 of 1 inputs"):
        ChatTokenizer(tmp_path, CONTEXT_TOKENS).encode(said, (), ["<|endoftext|>"])


def test_added_tokens_that_stand_for_inputs_are_text_in_a_message(tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    tokenizer.add_tokens([AddedToken("<image>", special=False, normalized=False)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    chat, added = ChatTokenizer(tmp_path, CONTEXT_TOKENS), tokenizer.token_to_id("<image>")
    assert added in chat.encode(user("<image>"))
    chat.reserve(["<image>"])
    assert added not in chat.encode(user("<image>"))


def test_a_developer_is_a_system(chat: ChatTokenizer) -> None:
    as_developer = chat.encode([Message(role="developer", content="x")])
    assert as_developer == chat.encode([Message(role="system", content="x")])


def test_a_lone_surrogate_is_refused(chat: ChatTokenizer) -> None:
    with pytest.raises(InvalidRequest, match=r"messages\.0\.content: lone surrogate '\\ud800' at 2") as refused:
        chat.encode(user("ab\ud800"))
    assert refused.value.code == "invalid_value"


def test_text_that_no_vocabulary_could_fit_into_the_context_is_refused_before_it_is_tokenized(
    chat: ChatTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = CONTEXT_TOKENS * max(map(len, chat.bytes_of))
    half = Message(role="user", content="é" * (most // 4))
    chat.encode([half, half])
    monkeypatch.setattr(chat, "_tokenizer", None)
    with pytest.raises(ContextTooLong, match=f"messages: {most + 1} bytes of text; at most {most} are allowed") as told:
        chat.encode([half, half, *user("x" * (most % 4 + 1))])
    assert (told.value.code, told.value.param) == ("context_length_exceeded", "messages")


def test_a_template_may_refuse(tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ raise_exception('users first') }}")
    with pytest.raises(InvalidRequest, match="the chat template refuses them: users first"):
        ChatTokenizer(tmp_path, CONTEXT_TOKENS).encode(user("x"))


def test_a_template_may_stand_in_the_configuration(tmp_path: Path, chat: ChatTokenizer) -> None:
    save_tokenizer(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "chat_template": TEMPLATE}))
    assert ChatTokenizer(tmp_path, CONTEXT_TOKENS).encode(CHAT) == chat.encode(CHAT)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json: .*a tokenizers file is allowed"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "tokenizer.json: .*a tokenizers file is allowed"),
        (lambda folder: (folder / "chat_template.jinja").unlink(), "chat_template.jinja: missing"),
        (lambda folder: (folder / "chat_template.jinja").write_text("{% if %}"), "a jinja2 template is allowed"),
    ],
)
def test_a_spoilt_tokenizer_is_named(tmp_path: Path, spoil, message: str) -> None:  # type: ignore[no-untyped-def]
    save_tokenizer(tmp_path)
    spoil(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        ChatTokenizer(tmp_path, CONTEXT_TOKENS)
