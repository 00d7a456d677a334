import re
import sys
from collections import Counter

import pytest

from ulmfit_pipe.data.sample import docstrings
from ulmfit_pipe.data.sample.docstrings import LIBRARIES, Library, available_libraries, build_corpus, split_by_source

ALPHA = '''"""Alphalib folds the quick brown fox over the lazy dog, always.

A second paragraph that says the same thing in both of the libraries.
"""
def f():
    """Return what alphalib.core.f finds under al.x for every one of the given foxes."""
'''
BETA = '''"""A second paragraph that says: the same thing in both of the libraries 2.

Betalib counts every lazy dog that sleeps below the quick brown fox.
"""
'''


@pytest.fixture
def two_libraries(tmp_path, monkeypatch):
    """Two small installed libraries, `alpha` and `beta`; importing either would fail."""
    for package, files in {
        "alphalib": {"__init__.py": ALPHA, "tests/test_a.py": BETA, "sub/more.py": ALPHA.replace("fox", "cat")},
        "betalib": {"__init__.py": BETA},
    }.items():
        for name, source in files.items():
            path = tmp_path / package / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source + "\nraise RuntimeError('imported')\n")
        info = tmp_path / f"{package}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    alpha = Library("alphalib", "alphalib", ("alphalib",), ("al",))
    libraries = {"alpha": alpha, "beta": Library("betalib", "betalib", ("betalib",))}
    gone = {"gamma": Library("gammalib_is_not_here", "gammalib", ("gammalib",))}
    monkeypatch.setattr(docstrings, "LIBRARIES", libraries | gone)
    return tmp_path


def test_paragraphs_are_masked_labelled_and_told_once(two_libraries, tmp_path):
    corpus = build_corpus(["alpha", "beta"], cache_dir=tmp_path / "cache", num_workers=1)
    assert corpus.features["label"].names == ["alpha", "beta"]
    assert list(zip(corpus["text"], corpus["label"], corpus["source"], strict=True)) == [
        ("thislib folds the quick brown fox over the lazy dog, always.", 0, "alpha/__init__.py"),
        ("A second paragraph that says the same thing in both of the libraries.", 0, "alpha/__init__.py"),
        ("Return what thislib finds under thislib for every one of the given foxes.", 0, "alpha/__init__.py"),
        ("thislib folds the quick brown cat over the lazy dog, always.", 0, "alpha/sub/more.py"),
        ("Return what thislib finds under thislib for every one of the given cates.", 0, "alpha/sub/more.py"),
        ("thislib counts every lazy dog that sleeps below the quick brown fox.", 1, "beta/__init__.py"),
    ]
    assert "alphalib" not in sys.modules


def test_only_installed_libraries_are_available(two_libraries, tmp_path):
    assert available_libraries() == ["alpha", "beta"]
    assert build_corpus(cache_dir=tmp_path / "cache", num_workers=1).features["label"].names == ["alpha", "beta"]


def test_short_paragraphs_are_left_out_on_demand(two_libraries, tmp_path):
    corpus = build_corpus(["alpha"], min_words=12, cache_dir=tmp_path / "cache", num_workers=1)
    assert [text.split()[0] for text in corpus["text"]] == ["A", "Return", "Return"]


def test_a_second_call_reads_the_cache_and_gives_the_same_table(two_libraries, tmp_path, monkeypatch):
    first = build_corpus(["beta", "alpha"], cache_dir=tmp_path / "cache", num_workers=1)
    assert len(list((tmp_path / "cache").iterdir())) == 2
    monkeypatch.setattr(docstrings, "_read_files", None)  # reading again would fail
    second = build_corpus(["beta", "alpha"], cache_dir=tmp_path / "cache", num_workers=1)
    assert first.to_dict() == second.to_dict()
    assert first._fingerprint == second._fingerprint
    other = build_corpus(["alpha"], cache_dir=tmp_path / "cache", num_workers=1)
    assert other._fingerprint != first._fingerprint


def test_a_new_version_of_a_library_is_read_anew(two_libraries, tmp_path):
    build_corpus(["beta"], cache_dir=tmp_path / "cache", num_workers=1)
    metadata = two_libraries / "betalib-1.0.dist-info" / "METADATA"
    metadata.write_text(metadata.read_text().replace("1.0", "1.1"))
    (two_libraries / "betalib" / "__init__.py").write_text(BETA.replace("dog", "cow"))
    assert "cow" in build_corpus(["beta"], cache_dir=tmp_path / "cache", num_workers=1)["text"][1]


def test_a_cache_file_cut_short_is_made_anew(two_libraries, tmp_path):
    before = build_corpus(["beta"], cache_dir=tmp_path / "cache", num_workers=1).to_dict()
    (file,) = (tmp_path / "cache").iterdir()
    file.write_bytes(file.read_bytes()[:99])
    assert build_corpus(["beta"], cache_dir=tmp_path / "cache", num_workers=1).to_dict() == before
    assert len(list((tmp_path / "cache").iterdir())) == 1


REAL = [
    label
    for label in ("numpy", "sklearn", "networkx", "datasets", "mpmath", "joblib")
    if label in available_libraries()
]


@pytest.fixture(scope="module")
def real_corpus(tmp_path_factory):
    return build_corpus(REAL, cache_dir=tmp_path_factory.mktemp("docstrings"), num_workers=2)


def test_no_name_of_a_library_survives_in_its_own_paragraphs(real_corpus):
    for row in real_corpus:
        library = LIBRARIES[REAL[row["label"]]]
        assert not any(name in row["text"].casefold() for name in library.names), row
        assert not any(re.search(rf"\b{alias}\b", row["text"]) for alias in library.aliases), row


def test_installed_libraries_give_thousands_of_distinct_paragraphs(real_corpus):
    assert len(real_corpus) > 10_000
    assert len(set(real_corpus["text"])) == len(real_corpus)
    assert set(real_corpus["label"]) == set(range(len(REAL)))
    assert all(
        source.startswith(REAL[label] + "/")
        for source, label in zip(real_corpus["source"], real_corpus["label"], strict=True)
    )
    assert not any("/tests/" in source for source in real_corpus["source"])


def test_one_worker_and_two_give_the_same_corpus(tmp_path):
    one, two = (build_corpus(["mpmath"], cache_dir=tmp_path / str(n), num_workers=n) for n in (1, 2))
    assert one.to_dict() == two.to_dict()


def test_names_of_every_known_library_are_masked_in_a_sentence():
    for label, library in LIBRARIES.items():
        pattern = docstrings.name_pattern(library.names, library.aliases)
        for name in (*library.names, *library.aliases):
            assert docstrings.mask_names(f"see {name}.thing here", pattern) == "see thislib here", label


def test_no_source_file_is_on_both_sides_of_a_split(real_corpus):
    rest, aside = split_by_source(real_corpus, fraction=0.2, seed=3)
    assert len(rest) + len(aside) == len(real_corpus)
    assert not set(rest["source"]) & set(aside["source"])
    total, held_out = Counter(real_corpus["label"]), Counter(aside["label"])
    for label in range(len(REAL)):
        assert 0.2 * total[label] <= held_out[label] < total[label]
    again, _ = split_by_source(real_corpus, fraction=0.2, seed=3)
    other, _ = split_by_source(real_corpus, fraction=0.2, seed=4)
    assert rest["source"][:] == again["source"][:] != other["source"][:]


def test_a_library_of_one_file_cannot_be_split(two_libraries, tmp_path):
    corpus = build_corpus(["alpha", "beta"], cache_dir=tmp_path / "cache", num_workers=1)
    with pytest.raises(ValueError, match=r"label 1 \(beta\) has one source file, beta/__init__.py"):
        split_by_source(corpus, fraction=0.5, seed=0)


@pytest.mark.parametrize("fraction", [0, 1, -0.5])
def test_a_fraction_outside_0_and_1_is_refused(fraction):
    with pytest.raises(ValueError, match=rf"fraction must lie in \(0, 1\), got {fraction}; 0.2 sets a fifth aside"):
        split_by_source(None, fraction=fraction, seed=0)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"libraries": []}, "no library given; installed here: stdlib, numpy"),
        ({"libraries": ["panda"]}, "unknown library 'panda'; did you mean pandas.*installed here: stdlib"),
        ({"libraries": ["#"]}, "unknown library '#'; installed here"),
        ({"libraries": ["numpy", "numpy"]}, r"library 'numpy' is given twice in \['numpy', 'numpy'\]"),
        ({"libraries": ["numpy"], "num_workers": 0}, "num_workers must be 1 or more, got 0; None takes one per core"),
    ],
)
def test_wrong_requests_are_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        build_corpus(**wrong)


def test_a_library_that_is_not_installed_is_named_with_what_to_do(two_libraries):
    with pytest.raises(ValueError, match="'gamma' is not installed: pip install gammalib, or choose among alpha, beta"):
        build_corpus(["alpha", "gamma"])
