"""Python source -> clean prose paragraphs of its docstrings, with a library's own names masked.

Pure text in, text out: no file is opened and nothing is imported but the standard library, so that this file can
run in worker processes. What is dropped: doctests, code and formula blocks, tables, headings, parameter-type lines,
references, templates. What is kept: paragraphs of at least `MIN_WORDS` words that are mostly plain words.
"""

import ast
import inspect
import re
from collections.abc import Iterator, Sequence

MASK = "thislib"  # stands for every name of the library that a paragraph comes from
MIN_WORDS = 8
MIN_LETTERS = 0.88  # share of letters and spaces among the characters
MIN_PLAIN_WORDS = 0.75  # share of words without digits, brackets, underscores, inner capitals

# Functions that attach a docstring to an object implemented in C: their string arguments are docstrings too.
DOCSTRING_CALLS = frozenset({"add_newdoc", "add_docstr", "_add_docstr"})
KEPT_DIRECTIVES = frozenset({"note", "warning", "tip", "important", "hint", "caution", "attention"})

_UNDERLINE = re.compile(r"^([-=~^*#+\"`_.])\1{2,}$")
_TABLE = re.compile(r"^[+|].*[+|]$|^[=-]{2,}( +[=-]{2,})+$")
_DIRECTIVE = re.compile(r"^\.\.\s+([\w-]+)::\s*(.*)$")
_COMMENT = re.compile(r"^\.\.(\s|$)")  # also targets and references
_FIELD = re.compile(r"^:[\w ,*]+:\s*(.*)$")  # :param x: text
_GOOGLE = re.compile(r"^[-*]{0,2}\s?[`*]*[\w.*, ]{1,60}[`*]*\s*\((?:[^()]|\([^()]*\))*\)\s*(?::|--)\s*(.*)$")
_NUMPY = re.compile(r"^[\w.,`~:*\[\]/ -]{1,70}\s:(?:\s+(.*))?$")
_LABEL = re.compile(r"^[`*]*[\w.]+[`*]*:\s+(.*)$")  # Note: text
_BULLET = re.compile(r"^(?:[-*+•]|\(?\w{1,2}[.)])\s+(.*)$")

_REWRITES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r":math:`[^`]*`", "formula"),
        (r"\$[^$]+\$", "formula"),
        (r"\[([^\][]*)\]\(\s*[^()\s]*\s*\)", r"\1"),  # [text](address)
        (r"<?\b(?:https?|ftp)://[^\s>)]*>?", ""),
        (r":[\w:+-]+:`([^`<]*?)\s*<[^`>]*>`", r"\1"),  # :role:`text <target>`
        (r":[\w:+-]+:`[~!.]*([^`]*)`", r"\1"),  # :role:`target`
        (r"`([^`<]*?)\s*<[^`>]*>`_*", r"\1"),
        (r"\[#?\w{0,20}\]_", ""),  # footnote marks
        (r"``([^`]*)``", r"\1"),
        (r"\[?`[~!.]*([^`]*)`_{0,2}\]?", r"\1"),
        (r"(\*\*|\*)(\S(?:[^*]*\S)?)\1", r"\2"),
        (r"\s+([.,;:)])(?=\s|$)", r"\1"),
        (r"\s+", " "),
    )
)
_TEMPLATE = re.compile(r"%\(|%s|\{[^}]*\}|\$\{|<<|\\\\|\|\w+\|")
_PLAIN_WORD = re.compile(r"^[(\"']*[A-Za-z]?[a-z]+(?:[-'/][A-Za-z]?[a-z]+)*[)\"'.,;:?!]*$")


def docstrings_of_source(source: str) -> list[str]:
    """All docstrings of a Python file, in the order of the file; none if it does not parse.

    Strings handed to a function of `DOCSTRING_CALLS` count as docstrings.
    """
    if '"""' not in source and "'''" not in source:
        return []
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return []
    return list(_docstrings_of_node(tree))


def _docstrings_of_node(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    docstring = ast.get_docstring(node, clean=False)
    if docstring:
        yield docstring
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _docstrings_of_node(child)
        elif isinstance(child, ast.Expr) and isinstance(child.value, ast.Call):
            yield from _docstrings_of_call(child.value)


def _docstrings_of_call(call: ast.Call) -> Iterator[str]:
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    if name in DOCSTRING_CALLS:
        for node in (inner for argument in call.args for inner in ast.walk(argument)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def paragraphs_of_docstring(docstring: str) -> list[str]:
    """Prose paragraphs of one docstring, each on one line, markup removed."""
    splitter = _ParagraphSplitter(inspect.cleandoc(docstring).expandtabs().splitlines())
    cleaned = (_without_markup(paragraph) for paragraph in splitter.paragraphs())
    return [paragraph for paragraph in cleaned if is_prose(paragraph)]


class _ParagraphSplitter:
    """Walks over the lines of one docstring and collects what may be prose."""

    def __init__(self, lines: list[str]) -> None:
        self._lines = lines
        self._found: list[str] = []
        self._open: list[str] = []  # lines of the paragraph being read
        self._open_indent = 0
        self._skip_deeper_than: int | None = None  # inside a literal block or a directive's body
        self._skip_to_blank = False  # inside a doctest or a table
        self._in_fence = False

    def paragraphs(self) -> list[str]:
        """Return the paragraphs of prose, in order, without code, tables, lists of arguments and markup blocks."""
        for number, line in enumerate(self._lines):
            stripped = line.strip()
            indent = len(line) - len(line.lstrip())
            if self._is_skipped(stripped, indent):
                continue
            following = self._lines[number + 1] if number + 1 < len(self._lines) else ""
            has_body = bool(following.strip()) and len(following) - len(following.lstrip()) > indent
            self._read(stripped, indent, has_body=has_body)
        self._close()
        return self._found

    def _is_skipped(self, line: str, indent: int) -> bool:
        """Whether the line is blank or belongs to a block to be dropped; keeps track of such blocks."""
        if line.startswith("```"):
            self._in_fence = not self._in_fence
            self._close()
            return True
        if not line:
            self._close()
            self._skip_to_blank = False
            return True
        if self._skip_deeper_than is not None and indent <= self._skip_deeper_than:
            self._skip_deeper_than = None
        return self._in_fence or self._skip_to_blank or self._skip_deeper_than is not None

    def _read(self, line: str, indent: int, *, has_body: bool) -> None:
        if line.startswith((">>>", "In [")) or _TABLE.match(line):
            self._close()
            self._skip_to_blank = True
        elif _UNDERLINE.match(line):
            self._open = self._open[:-1]  # the line above was a heading
            self._close()
        elif line.startswith(".."):
            self._read_directive(line, indent)
        else:
            self._read_text(line, indent, has_body=has_body)

    def _read_directive(self, line: str, indent: int) -> None:
        self._close()
        directive = _DIRECTIVE.match(line)
        if directive and directive[1].lower() in KEPT_DIRECTIVES:
            self._begin([directive[2]] if directive[2] else [], indent)
        elif _COMMENT.match(line):
            self._skip_deeper_than = indent

    def _read_text(self, line: str, indent: int, *, has_body: bool) -> None:
        entry = _FIELD.match(line) or _GOOGLE.match(line) or _LABEL.match(line) or _NUMPY.match(line)
        if entry:  # a parameter: what comes behind its type is the text, unless a body follows a numpy header
            is_header = has_body and entry.re is _NUMPY
            self._close()
            self._begin([] if is_header or not entry[1] else [entry[1]], indent)
        elif has_body and not self._open and len(line.split()) < MIN_WORDS:
            self._close()  # the term of a definition, or a heading such as "Args:"
        elif bullet := _BULLET.match(line):
            self._close()
            self._begin([bullet[1]], indent)
        else:
            if self._open and indent < self._open_indent:
                self._close()
            if self._open:
                self._open.append(line)
            else:
                self._begin([line], indent)
        if line.endswith("::"):
            self._close()
            self._skip_deeper_than = indent

    def _begin(self, lines: list[str], indent: int) -> None:
        self._open, self._open_indent = lines, indent

    def _close(self) -> None:
        if self._open:
            self._found.append(" ".join(self._open))
        self._open = []


def _without_markup(paragraph: str) -> str:
    for pattern, replacement in _REWRITES:
        paragraph = pattern.sub(replacement, paragraph)
    return paragraph.replace("::", ":").strip(" -*\"'")


def is_prose(paragraph: str) -> bool:
    """Whether a paragraph without markup is long enough and mostly made of plain words."""
    words = paragraph.split()
    if len(words) < MIN_WORDS or _TEMPLATE.search(paragraph):
        return False
    letters = sum(character.isalpha() or character == " " for character in paragraph)
    plain = sum(_PLAIN_WORD.match(word) is not None for word in words)
    return letters >= MIN_LETTERS * len(paragraph) and plain >= MIN_PLAIN_WORDS * len(words)


def name_pattern(names: Sequence[str], aliases: Sequence[str] = ()) -> re.Pattern[str]:
    """The regular expression for a library's own names.

    Args:
        names: Found anywhere inside a word, in any case, and taken with the whole dotted name around them:
            `torch` takes `torch.nn.Linear`, `PyTorch`, `torch_dtype`.
        aliases: Found as whole words in this case only, with what is dotted on to them: `np` takes `np.dot`.
    """
    inside = "|".join(re.escape(name) for name in names)
    pattern = rf"(?<![\w.])(?i:[\w.]*?(?:{inside}))\w*(?:\.\w+)*"
    if aliases:
        pattern += rf"|(?<!\w)(?:{'|'.join(re.escape(alias) for alias in aliases)})(?!\w)(?:\.\w+)*"
    return re.compile(pattern)


def mask_names(paragraph: str, pattern: re.Pattern[str]) -> str:
    """Put `MASK` where `pattern` (of `name_pattern`) finds a name."""
    return pattern.sub(MASK, paragraph)
