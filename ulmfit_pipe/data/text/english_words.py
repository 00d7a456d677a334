"""Split a cleaned-up English text into words as spaCy's English tokenizer does, which fastai's vocabularies come from.

Between spaces, punctuation is taken off the front and the back of a word until nothing more comes off or a word of the
table of exceptions is left ("don't" is "do" + "n't", "u.s." stays whole); then it is split at hyphens and the like.
Texts are in lower case here, so the rules for capitals are left out.

Source: spaCy 3.8.18, ``tokenizer.pyx``, ``lang/punctuation.py``, ``lang/char_classes.py``,
``lang/tokenizer_exceptions.py`` and ``lang/en``, rewritten. Copyright (C) 2016-2024 ExplosionAI GmbH, 2016 spaCy GmbH,
2015 Matthew Honnibal; MIT License: permission is hereby granted, free of charge, to any person obtaining a copy of this
software and associated documentation files (the "Software"), to deal in the Software without restriction, including
without limitation the rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the
Software, and to permit persons to whom the Software is furnished to do so, subject to the following conditions: the
above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software. The Software is provided "as is", without warranty of any kind, express or implied, including but not limited
to the warranties of merchantability, fitness for a particular purpose and noninfringement. In no event shall the
authors or copyright holders be liable for any claim, damages or other liability, whether in an action of contract, tort
or otherwise, arising from, out of or in connection with the Software or the use or other dealings in the Software.
"""

import re
from functools import cache

from ulmfit_pipe.data.text.remembered_words import RememberedWords
from ulmfit_pipe.data.text.text_rules import SPECIAL_TOKENS

SUFFIX_CONTEXT = 8  # characters: the longest suffix but a run of dots (km/h), and what its rule looks back at
SPACE_MARK = "▁"  # stands for a space inside a token of white space, as fastai writes it
REMEMBERED_BYTES = 64 * 2**20  # of pieces between spaces and their words

_ICONS = (
    "¦©®°҂֍֎؎؏۞۩۽۾߶৺୰௳-௸௺౿൏൹༁-༃༓༕-༗༚-༟༴༶༸྾-࿅࿇-࿌࿎࿏࿕-࿘႞႟᎐-᎙᥀᧞-᧿᭡-᭪᭴-᭼"
    "℀℁℃-℆℈℉℔№℗℞-℣℥℧℩℮℺℻⅊⅌⅍⅏↊↋↕-↙↜-↟↡↢↤↥↧-↭↯-⇍⇐⇑⇓⇕-⇳⌀-⌇⌌-⌟⌢-⌨⌫-⍻⍽-⎚⎴-⏛⏢-␦⑀-⑊⒜-ⓩ─-▶▸-◀◂-◷☀-♮♰-❧➔-➿⠀-⣿⬀-⬯⭅⭆⭍-⭳⭶-⮕⮘-⯈"
    "⯊-⯾⳥-⳪⺀-⺙⺛-⻳⼀-⿕⿰-⿻〄〒〓〠〶〷〾〿㆐㆑㆖-㆟㇀-㇣㈀-㈞㈪-㉇㉐㉠-㉿㊊-㊰㋀-㋾㌀-㏿䷀-䷿꒐-꓆꠨-꠫꠶꠷꠹꩷-꩹﷽￤￨￭￮￼�"
    "\U00010137-\U0001013f\U00010179-\U000101fc\U0001d000-\U0001d356\U0001d800-\U0001da86"
    "\U0001f000-\U0001f3fa\U0001f400-\U0001f9ff\U0001fa60-\U0001fa6d"
)
_QUOTES = "'\"”“`‘´’‚,„»«「」『』（）〔〕【】《》〈〉⟦⟧"
_PUNCTUATION = r"…,:;!?¿؟¡()\[\]{}<>_#*&。？！，、；：～·।،۔؛٪"
_CURRENCY = "$£€¥฿₽﷼₴₠-₿"
_LETTER = r"[^\W\d_¹²³¼½¾]"
# Scripts without capitals, which spaCy counts as upper and lower case: Hebrew to Malayalam, Hangul, kana, Han.
_UNCASED = "\u0591-\u06ff\u0750-\u077f\u08a0-\u0dff\u0e00-\u0e7f\u1100-\u137f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_UNITS = (
    "km[²³]?|dm[²³]?|cm[²³]?|mm[²³]?|m[²³]?|ha|µm|nm|yd|in|ft|kg|g|mg|µg|t|lb|oz|m/s|km/h|kmh|mph|mbar|mb|kb|gb|tb|%"
    "|км[²³]?|м[²³]?|дм[²³]?|см[²³]?|мм[²³]?|нм|кг|г|мг|м/с|км/ч|кб|мб|гб|тб"
)
_PREFIX = re.compile(rf"[§%=—–{_PUNCTUATION}{_QUOTES}{_CURRENCY}{_ICONS}]|\+(?![0-9])|\.\.+")
_SUFFIX = re.compile(
    rf"(?:['’]s|[{_PUNCTUATION}{_QUOTES}{_ICONS}—–]|……|\.\.+|(?<=[0-9])(?:\+|[{_CURRENCY}]|{_UNITS})|(?<=°[fck])\."
    rf"|(?:(?<={_LETTER})|(?<=[0-9%²\-+|{_PUNCTUATION}{_QUOTES}]))\.)$"
)
_INFIX = re.compile(
    rf"\.\.+|[…{_ICONS}]|(?<=[0-9])[+\-*^](?=[0-9-])"
    rf"|(?:(?<={_LETTER})|(?<=[{_QUOTES}]))\.(?=[{_UNCASED}{_QUOTES}])|(?<={_LETTER}),(?={_LETTER})"
    rf"|(?:(?<={_LETTER})|(?<=[0-9]))(?:-|–|—|--|---|——|~|[:<>=/])(?={_LETTER})"
)
_HOST_CHARACTER = "[A-Za-z0-9\u00a1-\uffff]"
_URL = re.compile(
    r"(?:[\w+\-.]{2,}://)?(?:\S+(?::\S*)?@)?"
    rf"(?:(?:{_HOST_CHARACTER}[A-Za-z0-9\u00a1-\uffff_-]{{0,62}})?{_HOST_CHARACTER}\.)+{_LETTER}{{2,63}}"
    r"(?::\d{2,5})?(?:[/?#]\S*)?"
)

_CONTRACTIONS = {  # first words -> what may follow; "|" parts the endings of one word
    "ai are dare has have is was were": "n't nt",
    "ca did do does had may need ought sha wo": "n't n't|'ve nt nt|ve",
    "could might must should would": "'ve n't n't|'ve nt nt|ve ve",
    "not": "'ve ve",
    "he": "'d 'd|'ve 'll 'll|'ve 's d d|ve ll|ve s",
    "she": "'d 'd|'ve 'll 'll|'ve 's d|ve ll|ve s",
    "i": "'d 'd|'ve 'll 'll|'ve 'm 'm|a 've d d|ve ll|ve m m|a ve",
    "it": "'d 'd|'ve 'll 'll|'ve 's d d|ve ll ll|ve",
    "that this": "'d 'd|'ve 'll 'll|'ve 's d d|ve ll ll|ve s",
    "we": "'d 'd|'ve 'll 'll|'ve 're 've d d|ve ll|ve ve",
    "they you these those": "'d 'd|'ve 'll 'll|'ve 're 've d d|ve ll ll|ve re ve",
    "there what when where why": "'d 'd|'ve 'll 'll|'ve 're 's 've d d|ve ll ll|ve re s ve",
    "how": "'d 'd|'ve 'd|'y 'll 'll|'ve 're 's 've d d|ve ll ll|ve re s ve",
    "who": "'d 'd|'ve 'll 'll|'ve 're 's 've d d|ve ll ll|ve s ve",
    "let": "'s",
    "c'm": "on",
    "can": "not",
    "gon": "na",
    "got": "ta",
    "y y'": "all",
    "°": "c|. f|. k|.",
    "1 2 3 4 5 6 7 8 9 10 11 12": "a.m. am p.m. pm",
}
_WHOLE = (  # never split
    "' '' 'bout 'cause 'cos 'coz 'cuz 'd 'em 'll 'nuff 're 's doin doin' em goin goin' havin havin' ll lovin lovin' "
    "ma'am nothin nothin' nuff nuthin nuthin' o'clock ol ol' somethin somethin' "
    "a. b. c. d. e. f. g. h. i. j. k. l. m. n. o. p. q. r. s. t. u. v. w. x. y. z. ä. ö. ü. "
    'a.m. and/or co. e.g. i.e. p.m. v.s. vs. w/o <space> — \\n \\t \\") '
    "(*_*) (-8 (-: (-; (-_-) (._.) (: (; (= (>_<) (^_^) (o: (¬_¬) (ಠ_ಠ) (╯°□°）╯︵┻━┻ )-: ): -_- -__- ._. 0.0 0.o "
    "0_0 0_o 8) 8-) :'( :') :'-( :'-) :( :(( :((( :() :) :)) :))) :* :-( :-(( :-((( :-) :-)) :-))) :-* :-/ :-0 :-3 :-> "
    ":-] :-o :-p :-x :-| :-} :/ :0 :1 :3 :> :] :o :o) :p :x :| :} ;) ;-) ;_; <.< </3 <3 <33 <333 =( =) =/ =3 =[ =] =| "
    ">.< >.> >:( >:o ><(((*> @_@ [-: [: [= ]= ^_^ ^__^ ^___^ o.0 o.o o_0 o_o v.v v_v ¯\\(ツ)/¯ ಠ_ಠ ಠ︵ಠ"
)


def cut_words(text: str) -> list[str]:
    """Words and punctuation of a cleaned-up text, in order.

    Args:
        text: What ``ulmfit_tokenizer.prepare_text`` returns: in lower case, marks written.

    Returns:
        Tokens without a space in them. One space between words is not a token; any other white space is one, with
        ``▁`` for the spaces in it, as in fastai.
    """
    tokens: list[str] = []
    for chunk in re.findall(r"\S+|\s+", text):
        if not chunk.isspace():
            tokens += _cut_chunk(chunk)
        elif rest := chunk.removeprefix(" "):
            tokens.append(rest.replace(" ", SPACE_MARK))
    return tokens


@cache
def exceptions() -> dict[str, tuple[str, ...]]:
    """The table of exceptions: a word, and the tokens that it is split into."""
    cut: dict[str, tuple[str, ...]] = {word: (word,) for word in [*_WHOLE.split(" "), *SPECIAL_TOKENS]}
    for words, endings in _CONTRACTIONS.items():
        for word in words.split(" "):
            for ending in endings.split(" "):
                pieces = (word, *ending.split("|"))
                cut["".join(pieces)] = pieces
    curly = {word.replace("'", "’"): tuple(p.replace("'", "’") for p in pieces) for word, pieces in cut.items()}
    return {**cut, **curly, "‘s": ("‘s",)}


@cache
def _joined_exceptions() -> tuple[dict[tuple[str, ...], tuple[str, ...]], dict[str, list[int]]]:
    """Exceptions that the rules split: split -> the tokens that replace it; first token -> lengths of its splits."""
    table: dict[tuple[str, ...], tuple[str, ...]] = {}
    lengths: dict[str, set[int]] = {}
    for word, pieces in exceptions().items():
        if _PREFIX.match(word) or _SUFFIX.search(word) or _INFIX.search(word):
            cut = tuple(_apply_rules(word, {}))
            table.setdefault(cut, pieces)
            lengths.setdefault(cut[0], set()).add(len(cut))
    return table, {token: sorted(found, reverse=True) for token, found in lengths.items()}


_remembered: RememberedWords[tuple[str, ...]] = RememberedWords(REMEMBERED_BYTES)


def _cut_chunk(chunk: str) -> tuple[str, ...]:
    cut = _remembered.known.get(chunk)
    if cut is None:
        known = exceptions()
        cut = known[chunk] if chunk in known else _join_exceptions(_apply_rules(chunk, known))
        _remembered.forget_if_full()
        _remembered.add(chunk, cut)
    return cut


def _apply_rules(chunk: str, known: dict[str, tuple[str, ...]]) -> list[str]:
    """Take affixes off a chunk, then split the rest by the table, or at its infixes."""
    front: list[str] = []
    back: list[str] = []
    start, end = 0, len(chunk)  # what is left; slices are taken only where they are short, so that time is linear
    while start < end and not _is_known(chunk, start, end, known):
        prefix = _PREFIX.match(chunk, start, end)
        inner = prefix.end() if prefix else start
        if prefix and _is_known(chunk, inner, end, known):
            front.append(prefix[0])
            start = inner
            break
        outer = _suffix_start(chunk, inner, end)
        if outer < end and _is_known(chunk, start, outer, known):
            back.append(chunk[outer:end])
            start, end = start, outer
            break
        if inner == start and outer == end:
            break
        if inner > start:
            front.append(chunk[start:inner])
        if outer < end:
            back.append(chunk[outer:end])
        start, end = inner, outer
    return [*front, *_cut_core(chunk[start:end], known), *reversed(back)]


def _is_known(chunk: str, start: int, end: int, known: dict[str, tuple[str, ...]]) -> bool:
    return end - start <= _longest_exception() and chunk[start:end] in known


@cache
def _longest_exception() -> int:
    return max(map(len, exceptions()))


def _suffix_start(chunk: str, start: int, end: int) -> int:
    """Return where the suffix of chunk[start:end] begins, or `end` where it has none."""
    dots = end
    while dots > start and chunk[dots - 1] == ".":
        dots -= 1
    if end - dots > 1:
        return dots
    tail = max(start, end - SUFFIX_CONTEXT)
    suffix = _SUFFIX.search(chunk[tail:end])
    return tail + suffix.start() if suffix else end


def _cut_core(core: str, known: dict[str, tuple[str, ...]]) -> list[str]:
    if not core:
        return []
    if core in known:
        return list(known[core])
    if "." in core and _URL.fullmatch(core):
        return [core]
    tokens: list[str] = []
    start = 0
    for infix in _INFIX.finditer(core):
        if infix.start() == 0:
            continue
        tokens += [core[start : infix.start()], infix[0]]
        start = infix.end()
    return [token for token in [*tokens, core[start:]] if token]


def _join_exceptions(tokens: list[str]) -> tuple[str, ...]:
    """Rejoin exceptions that the rules have split, such as ":" + ")"."""
    table, lengths = _joined_exceptions()
    spans = [
        (length, start, table[cut])
        for start, token in enumerate(tokens)
        for length in lengths.get(token, ())
        if start + length <= len(tokens) and (cut := tuple(tokens[start : start + length])) in table
    ]
    if not spans:
        return tuple(tokens)
    replaced: dict[int, tuple[int, tuple[str, ...]]] = {}
    taken: set[int] = set()
    for length, start, pieces in sorted(spans, key=lambda span: (-span[0], span[1])):
        if start not in taken and start + length - 1 not in taken:
            replaced[start] = (length, pieces)
        taken.update(range(start, start + length))
    joined: list[str] = []
    position = 0
    while position < len(tokens):
        length, found = replaced.get(position, (1, (tokens[position],)))
        joined += found
        position += length
    return tuple(joined)
