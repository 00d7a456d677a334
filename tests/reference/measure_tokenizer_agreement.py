"""Measure how far our word tokens are fastai's, on the texts of a table; not run by the tests.

    python tests/reference/measure_tokenizer_agreement.py --file train.parquet --fastai_python fastai-env/bin/python

Our tokens come from this environment, fastai 2.8.12's from its own (see make_fastai_reference.py), which is asked
through a pipe. Two sequences are aligned as difflib does; a token agrees if it stands in a matching block.

`--fixture tests/reference/word_tokens.json` stores the figure, and fastai's tokens of the sentences below, for
tests/data/text/test_english_words.py.

On IMDb's training reviews 0-999, not looked at while the rules were made: 314,159 tokens of fastai, 314,159 agree
(100.0000%; the pattern before reached 99.66%). On its test reviews 0-4999: 1,485,480 of 1,485,484. What is left is
spaCy's own dependence on context: ":)" or "'bout" is now and then cut where the same word stood in a text before.
"""

import argparse
import json
import subprocess
import sys
from collections import Counter
from difflib import SequenceMatcher
from pathlib import Path

HERE = Path(__file__).parent

SENTENCES = [
    "It's a film you can't ignore; they'll say it wasn't, shouldn't've, couldn't've been made.",
    "I cannot wait. I'm gonna go, 'cause y'all gotta see it, ain't that so?",
    "Dont wont cant didnt im its hes shes theyre youre were well hell shell wed ill id",
    "Mr. Smith and Dr. Jones of St. Louis met Mrs. Brown vs. the U.S. Army at 10 a.m. (or 9p.m.), i.e. early.",
    "A well-known, so-called B-movie: 70's style, 1980s-like, 2-hour, 3rd-rate and half-baked-but-fun.",
    "\"Great!\" he said... 'Not so,' she said.. \u201cWhy?\u201d \u2014 that\u2019s it.",
    "It cost $1,000,000.50 (about \u20ac900k), 50%, 5km, 10kg, 3.5mm, 20mph, 9/10, 7.5/10, -3 and +4, 1-2, 3*4, 2^8.",
    "Smile :) :-) :( ;-) :D <3 >:( (: =) ^_^ o_O and :P or :p, even (:) and :).",
    "Line one.<br /><br />Line two.<br />Line three <br /> and four. <br /> <br /> Five.",
    "rock'n'roll o'clock ma'am d'Artagnan O'Neil goin' nothin' dogs' James's 'em 'tis '80s",
    "See www.example.com, http://example.org/a-b?c=d or mail me-too@example.com; and/or w/o it/them.",
    "Wait--what?? No!!! Yes!? Hmm...ok..sure. end.Start word,word a:b c=d e>f x.y",
    "[Spoiler] {curly} (a(b)c) <tag> *bold* _under_ #hash @name & co. \u00a9 2001 \u2122 10\u00b0C 72\u00b0f. 5\u00d75",
    "Caf\u00e9 na\u00efve \u00fcber S\u00e3o-Paulo \u041c\u043e\u0441\u043a\u0432\u0430-\u0440\u0435\u043a\u0430",
    "‘Because’ – it isn’t: \u65e5\u672c\u8a9e\u3002\u6620\u753b \U0001f600\U0001f600 \u2605\u2605\u2605\u2606 \u00bd",
    "THE END of A.B.C. and NASA's JPL-2, R2D2, MTV-style; I'd've known. WHO'S there? That'll do.",
    "great great great GREAT sooooo goooood ---- ==== ____ ~~~ a~b 1~2 -- - --- x--y",
    "tabs\tand\u00a0hard\u00a0spaces \u00a0 mixed\n\nnew \n\n lines\r\nend",
    "He scored 10-0, 1,5 or 1.5. Vol.2, no.3 pp.12-15; ch.4, version 2.0.1 at 10:30am.",
    "Who're you? There'd be what's-his-name, let's go, lets go, c'mon, must've, might've, not've.",
    "xxmaj already xxup marked xxrep 3 text, xxunk.",
    "\"'Quoted' inside\" ('twas) [\u2026] \u2026and\u2026 so...on ,comma ;semi !bang ?ask",
    "'s 's. ('s) \u2018s \u2019s it'sn't isn't't cannot. (cannot) can'tve gonnas wanna gimme dunno",
    "5'10\" tall, 6ft, 12in., 100m, 40g. 3oz; 8mb/s 9gb 1tb \u00a35.99 5\u00a3 US$5 $5-$10 10$",
    'e-mail co-operate re-release pre-1960 post-9/11 anti-"art" "art"-like (semi-)pro non-',
]


def parse_words():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", help="table with a column `text`")
    parser.add_argument("--fastai_python", help="Python of an environment that has fastai")
    parser.add_argument("--first", type=int, default=0, help="first row")
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--shown", type=int, default=25, help="commonest differences to list")
    parser.add_argument("--fixture", help="store the figure and fastai's tokens of the built-in sentences here")
    parser.add_argument("--in_fastai", action="store_true", help="(used inside) texts on stdin, tokens on stdout")
    return parser.parse_args()


def tokens_in_fastai():
    """Read texts as JSON, write fastai's tokens as JSON; runs where fastai is."""
    from fastai.text.core import SpacyTokenizer, TokenizeWithRules

    tokenize = TokenizeWithRules(SpacyTokenizer())
    json.dump([list(tokens) for tokens in tokenize(json.load(sys.stdin))], sys.stdout)


def ask_fastai(python, texts):
    command = [python, __file__, "--in_fastai"]
    done = subprocess.run(command, input=json.dumps(texts), stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def our_tokens(texts):
    from ulmfit_pipe.data.text.english_words import cut_words
    from ulmfit_pipe.data.text.ulmfit_tokenizer import prepare_text

    return [cut_words(prepare_text(text)) for text in texts]


def compare(theirs, ours):
    """Return how many of fastai's tokens agree, and count the differences, as (theirs, ours)."""
    agreed, differences = 0, Counter()
    for their_tokens, our_tokens_ in zip(theirs, ours, strict=True):
        matcher = SequenceMatcher(None, their_tokens, our_tokens_, autojunk=False)
        agreed += sum(block.size for block in matcher.get_matching_blocks())
        for kind, i, j, k, m in matcher.get_opcodes():
            if kind != "equal":
                differences[" ".join(their_tokens[i:j]), " ".join(our_tokens_[k:m])] += 1
    return agreed, differences


def main():
    words = parse_words()
    if words.in_fastai:
        tokens_in_fastai()
        return
    import datasets

    table = datasets.load_dataset("parquet", data_files=words.file, split="train")
    texts = table.select(range(words.first, words.first + words.rows))["text"][:]
    theirs, ours = ask_fastai(words.fastai_python, texts), our_tokens(texts)
    agreed, differences = compare(theirs, ours)
    total, own = sum(map(len, theirs)), sum(map(len, ours))
    print(f"{len(texts)} texts from row {words.first}: {total:,} tokens of fastai, {own:,} of ours, {agreed:,} agree")
    print(f"agreement: {agreed / total:.4%} of fastai's tokens, {agreed / own:.4%} of ours")
    for (left, right), count in differences.most_common(words.shown):
        print(f"{count:6} x  fastai {left!r}  ours {right!r}")
    if words.fixture:
        rows = zip(SENTENCES, ask_fastai(words.fastai_python, SENTENCES), strict=True)
        content = {
            "measured": {"texts": len(texts), "first_row": words.first, "fastai_tokens": total, "agreed": agreed},
            "sentences": [{"text": text, "tokens": tokens} for text, tokens in rows],
        }
        Path(words.fixture).write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
