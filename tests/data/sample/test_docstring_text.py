import pytest

from ulmfit_pipe.data.sample.docstring_text import (
    docstrings_of_source,
    is_prose,
    mask_names,
    name_pattern,
    paragraphs_of_docstring,
)

PROSE = "the quick brown fox jumps over the lazy dog again"


def test_docstrings_of_modules_classes_and_functions_come_in_file_order():
    source = '''"""module"""
class A:
    """class"""
    async def f(self):
        """method"""
        def g():
            """inner"""
def h(): return "no docstring"
'''
    assert docstrings_of_source(source) == ["module", "class", "method", "inner"]


def test_docstrings_attached_to_c_functions_are_found():
    assert docstrings_of_source('add_newdoc("m", "name", ("attr", """text"""))') == ["m", "name", "attr", "text"]
    assert docstrings_of_source('print("""no docstring""")') == []


@pytest.mark.parametrize("source", ["x = 1", 'def f(:\n    """broken"""', '"""null\x00byte"""'])
def test_a_file_without_docstrings_or_that_does_not_parse_gives_none(source):
    assert docstrings_of_source(source) == []


def test_paragraphs_are_split_at_blank_lines_and_joined_to_one_line():
    docstring = f"""First {PROSE}
    and goes on.

    Second {PROSE}.
    """
    assert paragraphs_of_docstring(docstring) == [f"First {PROSE} and goes on.", f"Second {PROSE}."]


def test_numpy_style_parameters_give_their_descriptions_only():
    docstring = f"""
    Parameters
    ----------
    x : array_like, shape (n, m), and a few more words of type
        One {PROSE}.
    y, z : float, optional
        Two {PROSE}
        and more.

        Three {PROSE}.

    See Also
    --------
    other : Four {PROSE}.
    """
    assert paragraphs_of_docstring(docstring) == [
        f"One {PROSE}.",
        f"Two {PROSE} and more.",
        f"Three {PROSE}.",
        f"Four {PROSE}.",
    ]


def test_google_and_sphinx_style_parameters_give_their_descriptions_only():
    docstring = f"""
    Args:
        input (Tensor): One {PROSE}
            and more.
        ids (`torch.LongTensor` of shape `(batch_size, length)`, *optional*):
            Two {PROSE}.
        plain: Three {PROSE}.
    :param x: Four {PROSE}.
    """
    assert paragraphs_of_docstring(docstring) == [
        f"One {PROSE} and more.",
        f"Two {PROSE}.",
        f"Three {PROSE}.",
        f"Four {PROSE}.",
    ]


@pytest.mark.parametrize(
    "block",
    [
        f">>> {PROSE}\n{PROSE}",
        f"```python\n{PROSE}\n\n{PROSE}\n```",
        f".. code-block:: python\n\n    {PROSE}\n\n    {PROSE}",
        f".. math::\n    {PROSE}",
        f".. [1] {PROSE}",
        f"Short literal::\n\n    {PROSE}\n\n    {PROSE}",
        f"+-----+\n| {PROSE} |\n+-----+",
        f"====  ====\n{PROSE}\n====  ====",
        f"{PROSE}\n{'=' * len(PROSE)}",
        f"{PROSE} of %(klass)s and {{name}}",
    ],
)
def test_blocks_that_are_no_prose_are_dropped_and_the_text_behind_them_kept(block):
    assert paragraphs_of_docstring(f"{block}\n\nBehind {PROSE}.") == [f"Behind {PROSE}."]


def test_the_body_of_a_note_is_kept_and_bullets_are_split():
    docstring = f".. note::\n    One {PROSE}.\n\n- Two {PROSE}.\n- Three {PROSE}\n  and more."
    assert paragraphs_of_docstring(docstring) == [f"One {PROSE}.", f"Two {PROSE}.", f"Three {PROSE} and more."]


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        (":class:`~a.b.C`", "a.b.C"),
        (":ref:`the guide <guide>`", "the guide"),
        ("`text <https://x.org>`_", "text"),
        ("``code``", "code"),
        ("[`~A.b`]", "A.b"),
        ("[words](https://x.org/a)", "words"),
        ("**bold** and *slanted*", "bold and slanted"),
        (":math:`\\alpha^2`", "formula"),
        ("$x_1$", "formula"),
    ],
)
def test_markup_is_removed(markup, text):
    assert paragraphs_of_docstring(f"See {markup} where {PROSE}.") == [f"See {text} where {PROSE}."]


def test_addresses_and_footnote_marks_are_removed():
    assert paragraphs_of_docstring(f"Found [1]_ at https://x.org/y where {PROSE}.") == [f"Found at where {PROSE}."]


@pytest.mark.parametrize(
    ("paragraph", "expected"),
    [
        (PROSE, True),
        ("only seven words are in this line", False),
        ("x[1] = y[2] + 3 * z[4] if a_b else c(d) and so on", False),
        ("a b_c d_e f_g h_i j_k l_m n_o p_q", False),
    ],
)
def test_prose_is_long_enough_and_mostly_plain_words(paragraph, expected):
    assert is_prose(paragraph) is expected


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Use torch.nn.Linear.", "Use thislib."),
        ("PyTorch, torch_dtype and TORCH.", "thislib, thislib and thislib."),
        ("np.dot(a, np) snp np_x NP", "thislib(a, thislib) snp np_x NP"),
        ("A torch-like thing; scikit-learn too", "A thislib-like thing; thislib too"),
        ("import x.torchvision.y of course", "import thislib of course"),
        ("concatenate the latent inputs", "concatenate the latent inputs"),
    ],
)
def test_names_are_masked_with_all_that_hangs_on_them(text, masked):
    assert mask_names(text, name_pattern(["torch", "scikit-learn"], ["np"])) == masked
