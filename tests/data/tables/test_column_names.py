"""A column that is missing: the message names the setting, what is there and what seems wrong, in one line."""

import pytest

from ulmfit_pipe.data.tables.column_names import check_wanted, shown_name, shown_names
from ulmfit_pipe.data.tables.readers import TableError, open_rows
from ulmfit_pipe.data.tables.row_sources import TableReading


def refusal(tmp_path, text, *, texts=("text",), label="label", **options):
    path = tmp_path / "rows.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(TableError) as caught:  # also of opening it
        check_wanted(open_rows(path, reading=TableReading(**options)), texts, () if label is None else (label,))
    message = str(caught.value).removeprefix(f"{path}: ")
    assert "\n" not in message
    return message


def test_the_setting_that_names_a_missing_column_is_named(tmp_path):
    assert refusal(tmp_path, "text,sentiment\na,x\nb,y\n") == (
        "there is no column 'label'; there are text, sentiment; --label_column names the column of labels"
    )
    assert refusal(tmp_path, "Text,label\na,x\nb,y\n") == (
        "there is no column 'text'; there are Text, label; did you mean 'Text'?; --text_column names the column of text"
    )


@pytest.mark.parametrize(
    ("mark", "words"),
    [
        (";", "the header holds semicolons; --delimiter semicolon takes them for what separates the fields"),
        ("\t", "the header holds tabs; --delimiter tab takes them"),
        ("|", "the header holds pipes; --delimiter pipe takes them"),
    ],
)
def test_a_header_that_was_not_split_says_what_it_holds(tmp_path, mark, words):
    assert words in refusal(tmp_path, f"text{mark}label\na{mark}x\n", delimiter=",")


@pytest.mark.parametrize(
    "text", ['"text" "label"\n"a, b" "x"\n', '"text" "label"\n"1" "a, b" "x"\n', "text label\na x\nb y\n"]
)
def test_spaces_between_the_names_are_named_as_r_writes_them(tmp_path, text):
    assert "; --delimiter space takes " in refusal(tmp_path, text)


def test_columns_of_0_and_1_are_named_together_and_never_meant_as_the_text(tmp_path):
    text = "comment,toxic,threat,obscene\na,0,1,0\nb,1,0,0\n"
    assert "did you mean" not in refusal(tmp_path, text, texts=("treat",))
    message = refusal(tmp_path, text, texts=("comment",), label="lable")
    assert message == (
        "there is no column 'lable'; there are comment, toxic, threat, obscene; for columns of 0 and 1 that are one "
        "label each give them all: --label_column toxic --label_column threat --label_column obscene"
    )
    many = ",".join(f"flag{number}" for number in range(30))
    message = refusal(tmp_path, f"text,{many}\n" + f"a{',1' * 30}\nb{',0' * 30}\n")
    assert message.endswith("--label_column flag6 --label_column flag7 ...")


@pytest.mark.parametrize(
    "text",
    [
        "what is it ?,DESC\nwho ?,HUM\nwhere is it ?,LOC\nhow ?,DESC\n",  # the label stands below it
        "1,a film\n2,a longer film\n1,film\n",  # a number
        f"{'a long text ' * 9},x\nb,y\n",
    ],
)
def test_a_first_row_like_the_others_is_no_header(tmp_path, text):
    assert "the file seems to have no header: --no_header true names its columns by number (perhaps --text_column" in (
        refusal(tmp_path, text)
    )


def test_the_columns_that_may_be_meant_are_named_by_number(tmp_path):
    message = refusal(tmp_path, "ham,how are you,7\nspam,win a lot of money,8\nham,hello,9\n")
    assert message.endswith("(perhaps --text_column 2 and --label_column 1)")


@pytest.mark.parametrize(
    "text",
    [
        "# exported today\ntext,label\na,x\n",
        "Survey of 2024\ntext,label\na,x\nb,y\n",
        "Survey of 2024,\ntext,label\na,x\n",
    ],
)
def test_a_first_line_that_is_a_title_is_to_be_removed(tmp_path, text):
    assert refusal(tmp_path, text).endswith(
        "the first line seems to be a title or a comment; remove it, so that the first line names the columns"
    )


def test_a_first_column_with_a_number_sign_and_columns_without_names_are_no_title(tmp_path):
    assert refusal(tmp_path, "#id,comment\n7,a\n8,b\n").endswith("--text_column names the column of text")
    assert refusal(tmp_path, "v1,v2,,,\nx,a,,,\ny,b,,,\n").endswith("--text_column names the column of text")


def test_a_file_of_fasttext_is_named(tmp_path):
    message = refusal(tmp_path, "__label__pos good film\n__label__neg bad, dull film\n")
    assert message.endswith(
        "the file is of fastText; write a table with a column of labels, without __label__, and one of text"
    )


def test_a_wanted_name_that_stands_twice_is_refused_and_another_is_not(tmp_path):
    assert (
        refusal(tmp_path, "text,text,label\na,b,x\n")
        == "the column name 'text' is there twice; rename one of the columns"
    )
    path = tmp_path / "twice.csv"
    path.write_text("text,x,x,,,label\na,b,c,d,e,f\n")
    check_wanted(open_rows(path), ["text"], ("label",))
    assert open_rows(path).columns == ["text", "x", "x.3", "4", "5", "label"]


def test_the_message_is_bounded_and_shows_control_characters(tmp_path):
    wide = ",".join([f"a column with a rather long name, number {n}".replace(",", "") for n in range(5000)])
    message = refusal(tmp_path, f"{wide}\n{wide}\n")
    assert len(message) < 1200
    assert "and 4,980 more" in message
    assert "\\x1b[2J\\x1b[31mevil, label" in refusal(tmp_path, "\x1b[2J\x1b[31mevil,label\na,b\n")


def test_names_are_shown_cut():
    assert shown_name("a" * 99) == "a" * 37 + "..."
    assert shown_name("\r\u202eé") == "\\r\\u202eé"
    assert shown_names(list("abc")) == "a, b, c"
