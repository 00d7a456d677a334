import csv
import hashlib
import re
import runpy
import sys

import datasets
import numpy as np
import pytest
from PIL import Image

from tests.support.image_files import image_folder, picture, png, png_that_claims
from ulmfit_pipe.data.images import files as image_files
from ulmfit_pipe.data.images.files import ImageError, image_table, load_images, open_image, scan_images
from ulmfit_pipe.data.tables.tables import TableError


def refused(words):
    return pytest.raises(ImageError, match=words)


# ---- where images come from


def test_a_folder_of_class_folders_gives_every_image_with_its_class(tmp_path):
    folder = image_folder(tmp_path, ("bee", "ant"), count=2)
    (folder / "ant/deeper").mkdir()
    picture().save(folder / "ant/deeper/2.jpg")
    (folder / ".hidden").write_text("")
    (folder / "bee/.DS_Store").write_text("")
    (folder / "bee/Thumbs.db").write_text("")
    table = load_images(folder)
    assert table.features["label"].names == ["ant", "bee"]
    rows = [(str(row["image"]["path"]).removeprefix(f"{folder}/"), row["label"]) for row in table]
    assert rows == [("ant/0.png", 0), ("ant/1.png", 0), ("ant/deeper/2.jpg", 0), ("bee/0.png", 1), ("bee/1.png", 1)]


def test_classes_with_numbers_for_names_are_sorted_by_value(tmp_path):
    folder = image_folder(tmp_path, ("10", "9"), count=1)
    assert load_images(folder).features["label"].names == ["9", "10"]


def test_a_test_folder_takes_the_numbers_of_the_classes_that_training_knows(tmp_path):
    table = load_images(image_folder(tmp_path, ("bee",), count=2), label_names=["ant", "bee"])
    assert (table["label"][:], table.features["label"].names) == ([1, 1], ["ant", "bee"])


def test_a_class_that_training_does_not_know_is_refused(tmp_path):
    folder = image_folder(tmp_path, ("ant", "wasp"), count=1)
    with refused(r"has the class 'wasp', which training does not know \(ant, bee\); rename it, or train with it"):
        load_images(folder, label_names=["ant", "bee"])


def test_an_empty_class_folder_is_refused_by_name(tmp_path):
    folder = image_folder(tmp_path, count=1)
    (folder / "wasp").mkdir()
    with refused(re.escape(f"the class folder {folder / 'wasp'} is empty; put images of the class in it, or remove")):
        load_images(folder)


def test_folders_that_are_laid_out_otherwise_are_refused_with_the_right_layout(tmp_path):
    (tmp_path / "flat").mkdir()
    picture().save(tmp_path / "flat/1.png")
    with refused("flat holds no folder of images per class; lay images out as .*flat/CLASS/IMAGE"):
        load_images(tmp_path / "flat")
    image_folder(tmp_path / "split/train", count=1)
    image_folder(tmp_path / "split/val", count=1)
    with refused("holds train, val, which are splits rather than classes; give one of them, such as .*split/train"):
        load_images(tmp_path / "split")
    folder = image_folder(tmp_path / "loose", count=1)
    picture().save(folder / "stray.png")
    with refused("loose/stray.png is beside the class folders, so it has no class; move or remove it"):
        load_images(folder)
    with refused("there is no folder or table .*nowhere; give a folder that holds a folder of images per class"):
        load_images(tmp_path / "nowhere")


def write_table(path, rows, columns=("image", "label")):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return path


def test_a_table_holds_paths_from_its_own_folder_on(tmp_path):
    image_folder(tmp_path / "images", count=1)
    path = write_table(
        tmp_path / "t.csv", [("images/ant/0.png", "ant"), (tmp_path / "images/bee/0.png", "bee")], ("file", "kind")
    )
    table = load_images(path, image_column="file", label_column="kind")
    assert [row["image"]["path"] for row in table] == [
        str(tmp_path / f"images/{name}/0.png") for name in ("ant", "bee")
    ]
    assert table.features["label"].names == ["ant", "bee"]
    assert table.features["label"].id is None
    assert len(scan_images(table).table) == 2
    numbers = write_table(tmp_path / "n.csv", [("images/ant/0.png", 10), ("images/bee/0.png", 9)], ("image", "label"))
    kept = load_images(numbers).features["label"]
    assert (kept.names, kept.id) == (["9", "10"], "int")
    assert load_images(path, image_column="file", label_column=None).column_names == ["image"]


def test_a_tables_own_mistakes_are_named_by_row(tmp_path):
    path = write_table(tmp_path / "t.csv", [("a.png", "ant"), ("b.png", "wasp")])
    with pytest.raises(TableError, match="row 2 .*the label 'wasp' is not among those that training knows"):
        load_images(path, label_names=["ant", "bee"])
    with pytest.raises(TableError, match="there is no column 'image'; there are file, label"):
        load_images(write_table(tmp_path / "u.csv", [("a.png", "ant")], ("file", "label")))


def dataset_of(labels, feature, *, images=None):
    images = images if images is not None else [picture(seed=row) for row in range(len(labels))]
    features = datasets.Features({"photo": datasets.Image(), "kind": feature})
    return datasets.Dataset.from_dict({"photo": images, "kind": labels}, features=features)


@pytest.mark.parametrize(
    ("labels", "feature", "names", "numbers"),
    [
        ([1, 0], datasets.ClassLabel(names=["bee", "ant"]), ["bee", "ant"], [1, 0]),
        (["bee", "ant"], datasets.Value("string"), ["ant", "bee"], [1, 0]),
        ([10, 9], datasets.Value("int64"), ["9", "10"], [1, 0]),
    ],
)
def test_a_dataset_gives_its_images_undecoded_and_its_labels_by_name(labels, feature, names, numbers, tmp_path):
    dataset = dataset_of(labels, feature)
    dataset.save_to_disk(tmp_path / "saved")
    for source in (dataset, tmp_path / "saved"):
        table = load_images(source, image_column="photo", label_column="kind")
        assert table.column_names == ["image", "label"]
        assert (table.features["label"].names, table["label"][:]) == (names, numbers)
        opened = open_image(table[0]["image"]["bytes"], "it")
        assert np.array_equal(np.asarray(opened), np.asarray(picture(seed=0)))


def test_the_labels_of_a_dataset_take_the_numbers_that_training_knows():
    dataset = dataset_of([0, 1], datasets.ClassLabel(names=["bee", "ant"]))
    table = load_images(dataset, image_column="photo", label_column="kind", label_names=["ant", "bee"])
    assert (table["label"][:], table.features["label"].names) == ([1, 0], ["ant", "bee"])
    with refused(r"row 1 of the dataset has the class 'bee', which training does not know \(ant, wasp\)"):
        load_images(dataset, image_column="photo", label_column="kind", label_names=["ant", "wasp"])


def test_a_saved_dataset_of_several_splits_needs_one_named(tmp_path):
    part = dataset_of(["ant", "bee"], datasets.Value("string"))
    datasets.DatasetDict(train=part, test=part).save_to_disk(tmp_path / "both")
    with refused("has the splits train, test; save the one you mean in a folder of its own, or pass split=, got None"):
        load_images(tmp_path / "both", image_column="photo", label_column="kind")
    columns = {"image_column": "photo", "label_column": "kind"}
    assert len(load_images(tmp_path / "both", split="test", **columns)) == 2
    datasets.DatasetDict(train=part).save_to_disk(tmp_path / "one")
    assert len(load_images(tmp_path / "one", **columns)) == 2


def test_a_dataset_that_cannot_be_used_says_why():
    string = datasets.Value("string")
    with refused("the dataset has no column 'image'; it has photo, kind"):
        load_images(dataset_of(["a"], string))
    with refused("row 2 of the dataset has no label; label it, or remove the row"):
        load_images(dataset_of(["a", None], string), image_column="photo", label_column="kind")
    with refused("row 1 of the dataset has the label 0.5; an image has one, a name or an integer"):
        load_images(dataset_of([0.5], datasets.Value("float64")), image_column="photo", label_column="kind")
    numbers = datasets.Dataset.from_dict({"image": [[1, 2]], "label": ["a"]})
    with refused(r"column 'image' of the dataset holds List.*it must hold images \(datasets.Image\), paths or the byt"):
        load_images(numbers)


# ---- opening one


def opened(image, *, grey=False, **options):
    return np.asarray(open_image(png(image, **options), "it", grey=grey))


def test_grey_palette_and_transparent_images_become_colour_or_grey_as_asked():
    grey = Image.fromarray(np.array([[0, 200]], dtype=np.uint8))
    assert opened(grey).tolist() == [[[0, 0, 0], [200, 200, 200]]]
    assert opened(grey, grey=True).tolist() == [[0, 200]]
    palette = grey.convert("P")
    assert opened(palette).tolist() == [[[0, 0, 0], [200, 200, 200]]]
    red = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    red.putpixel((1, 0), (255, 0, 0, 0))  # what is hidden does not show
    assert opened(red).tolist() == [[[255, 0, 0], [255, 255, 255]]]
    assert opened(red.convert("LA")).tolist() == [[[76, 76, 76], [255, 255, 255]]]
    see_through = Image.new("P", (1, 1), 0)
    assert opened(see_through, transparency=0).tolist() == [[[255, 255, 255]]]
    assert opened(Image.new("1", (1, 1), 1)).tolist() == [[[255, 255, 255]]]


def test_sixteen_bits_become_eight():
    deep = Image.fromarray(np.array([[0, 0x1234, 0xFFFF]], dtype=np.uint16))
    assert opened(deep, grey=True).tolist() == [[0, 0x12, 0xFF]]


def test_an_image_of_a_single_pixel_opens():
    assert opened(Image.new("RGB", (1, 1), (1, 2, 3))).tolist() == [[[1, 2, 3]]]


def test_an_image_is_turned_as_its_camera_says():
    image = picture(width=4, height=2)
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side: turn by 90 degrees clockwise
    content = png(image, exif=exif)
    expected = np.asarray(image.transpose(Image.Transpose.ROTATE_270))
    assert np.array_equal(np.asarray(open_image(content, "it")), expected)


def test_of_an_animation_the_first_picture_is_taken(tmp_path):
    first, second = Image.new("RGB", (3, 2), "red"), Image.new("RGB", (3, 2), "blue")
    first.save(tmp_path / "a.gif", save_all=True, append_images=[second])
    assert np.asarray(open_image((tmp_path / "a.gif").read_bytes(), "it"))[0, 0].tolist() == [255, 0, 0]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("sides", "has"), [((12_000, 9_000), "108,000,000"), ((60_000, 60_000), "more than twice as")])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(sides, has):
    content = png_that_claims(*sides)
    assert len(content) < 100
    with refused(f"big.png is too large: at most 89,478,485 pixels are decoded .*, it has {has}"):
        open_image(content, "big.png")


def test_the_bound_is_the_number_of_pixels(monkeypatch):
    monkeypatch.setattr(image_files, "MAX_PIXELS", 108)
    assert opened(picture(width=12, height=9)).shape == (9, 12, 3)
    monkeypatch.setattr(image_files, "MAX_PIXELS", 107)
    with refused("it is too large: at most 107 pixels are decoded .*, it has 108; make it smaller first"):
        opened(picture(width=12, height=9))


def test_what_is_no_image_or_was_cut_short_is_refused_by_name(tmp_path):
    whole = png(picture(width=40, height=40))
    for content in (b"no image at all", b"", whole[:-200], whole[:30]):
        with refused("odd.png does not open as an image"):
            open_image(content, "odd.png")
    picture(width=300, height=300).save(tmp_path / "a.jpg")
    cut = (tmp_path / "a.jpg").read_bytes()[:-3000]
    for draft in (False, True):
        with refused("odd.jpg does not open as an image"):
            open_image(cut, "odd.jpg", draft=draft)


def test_numbers_that_are_no_brightness_are_refused(tmp_path):
    for name, values in (
        ("float", np.array([[0.5]], dtype=np.float32)),
        ("int", np.array([[1 << 20]], dtype=np.int32)),
    ):
        Image.fromarray(values).save(tmp_path / f"{name}.tiff")
        with refused(r"scan.tiff holds values \(mode [FI]\) that are not brightness of 8 or 16 bits"):
            open_image((tmp_path / f"{name}.tiff").read_bytes(), "scan.tiff")


# ---- scanning all


def table_of(*contents, labels=None):
    return image_table(contents, labels or [row % 2 for row in range(len(contents))], ["ant", "bee"])


def test_a_scan_reads_every_file_once_and_remembers_what_was_in_it(tmp_path):
    table = load_images(image_folder(tmp_path, count=2))
    scan = scan_images(table)
    contents = [(tmp_path / name).read_bytes() for name in ("ant/0.png", "ant/1.png", "bee/0.png", "bee/1.png")]
    assert scan.digests == [hashlib.sha256(content).hexdigest() for content in contents]
    assert (len(scan.table), scan.skipped) == (4, [])


def test_bad_images_are_named_by_file_and_row_and_left_out_only_when_asked(tmp_path):
    folder = image_folder(tmp_path, count=3)
    (folder / "ant/1.png").write_bytes(b"no image")
    (folder / "bee/2.png").unlink()
    table = load_images(folder)
    (folder / "bee/1.png").unlink()  # listed, and gone since
    with refused(
        r"ant/1.png \(row 2\) does not open as an image .*; .*bee/1.png \(row 5\) cannot be read \(No such file"
    ):
        scan_images(table)
    with refused("or set skip_bad_images to leave such images out"):
        scan_images(table)
    scan = scan_images(table, skip_bad=True)
    assert [row["image"]["path"].removeprefix(f"{folder}/") for row in scan.table] == [
        "ant/0.png",
        "ant/2.png",
        "bee/0.png",
    ]
    assert [problem.split(" (row")[0].rpartition("/")[2] for problem in scan.skipped] == ["1.png", "1.png"]
    assert len(scan.digests) == 3


def test_many_bad_images_are_counted(tmp_path):
    with refused("the image of row 1 does not open .*; and 3 more. Replace or remove"):
        scan_images(table_of(*[b"bad"] * 8))


def test_a_class_that_loses_all_its_images_is_refused_and_so_is_a_table_without_any():
    good = png(picture())
    with refused("none of the images of class 'bee' opens; replace them, or remove the class"):
        scan_images(table_of(good, b"bad", good, b"bad"), skip_bad=True)
    with refused("none of the 2 images opens; give at least one that does"):
        scan_images(table_of(b"bad", b"bad"), skip_bad=True)


def test_a_row_without_an_image_is_refused():
    features = datasets.Features({"image": datasets.Image(decode=False)})
    table = datasets.Dataset.from_dict({"image": [None]}, features=features)
    with refused("the image of row 1 holds no image; fill it in, or remove the row"):
        scan_images(table)


def test_without_pillow_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(
        ImportError, match=re.escape("Pillow, which is not installed: pip install 'ulmfit_pipe[vision]'")
    ):
        runpy.run_path(image_files.__file__)
