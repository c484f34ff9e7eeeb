"""Writes `dummy_data/`: a few synthetic files in each source's real layout, for the tests.

Run `python dummy_data_generator.py`. Masks are asymmetric, so that a test notices a flipped or transposed one.
"""

import json
import pathlib

import cv2
import numpy as np

HERE = pathlib.Path(__file__).parent / "dummy_data"
HEIGHT, WIDTH = 20, 28


def make_image(seed: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Smooth noise, uint8 (H, W)."""
    noise = np.random.default_rng(seed).integers(0, 256, (5, 7), np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


def marker(x: int, y: int, width: int, height: int) -> np.ndarray:
    """A mask with one rectangle: uint8 {0, 255} (H, W)."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[y : y + height, x : x + width] = 255
    return mask


def write(path: str, array: np.ndarray) -> None:
    """Write an image to `dummy_data/`."""
    target = HERE / path
    target.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(target), array):
        raise OSError(f"{target}: could not be written")


def text(path: str, content: str) -> None:
    """Write a text file to `dummy_data/`."""
    (HERE / path).parent.mkdir(parents=True, exist_ok=True)
    (HERE / path).write_text(content, encoding="utf-8")


def busi() -> None:
    """Two masks of one scan; an RGBA mask; an RGB image; a normal scan with an empty mask."""
    top = "busi/Dataset_BUSI_with_GT"
    write(f"{top}/benign/benign (1).png", make_image(1))
    write(f"{top}/benign/benign (1)_mask.png", marker(2, 3, 5, 4))
    write(f"{top}/benign/benign (1)_mask_1.png", marker(20, 12, 6, 3))
    write(f"{top}/benign/benign (2).png", cv2.cvtColor(make_image(2), cv2.COLOR_GRAY2BGR))
    write(f"{top}/benign/benign (2)_mask.png", cv2.cvtColor(marker(1, 2, 4, 9), cv2.COLOR_GRAY2BGRA))
    write(f"{top}/malignant/malignant (1).png", make_image(3))
    write(f"{top}/malignant/malignant (1)_mask.png", marker(9, 1, 12, 6))
    write(f"{top}/normal/normal (1).png", make_image(4))
    write(f"{top}/normal/normal (1)_mask.png", marker(0, 0, 0, 0))


def busbra() -> None:
    """Two patients, one with two images."""
    rows = (
        ("0001-l", "1,invasive ductal carcinoma,malignant,4,GE Logiq 7 @10-14MHz"),
        ("0001-r", "1,invasive ductal carcinoma,malignant,4,GE Logiq 7 @10-14MHz"),
        ("0002-l", "2,,benign,2,device"),
    )
    for k, (name, _) in enumerate(rows):
        write(f"busbra/BUSBRA/Images/bus_{name}.png", make_image(10 + k))
        write(f"busbra/BUSBRA/Masks/mask_{name}.png", marker(3 + k, 2, 6, 5))
    lines = [f'bus_{name},{facts},28,20,left,"[3,2,6,5]"' for name, facts in rows]
    header = "ID,Case,Histology,Pathology,BIRADS,Device,Width,Height,Side,BBOX"
    text("busbra/BUSBRA/bus_data.csv", "\n".join([header, *lines]) + "\n")


def lgg() -> None:
    """Two patients; a slice with tumour and one without each; three sequences in three channels."""
    for k, patient in enumerate(("TCGA_CS_0001_19990101", "TCGA_DU_0002_19990202")):
        for number in (1, 2):
            stem = f"lgg/kaggle_3m/{patient}/{patient}_{number}"
            write(f"{stem}.tif", np.dstack([make_image(20 + 10 * k + 3 * number + c) for c in range(3)]))
            write(f"{stem}_mask.tif", marker(5, 4 + k, 7, 3) if number == 1 else marker(0, 0, 0, 0))
    columns = "Patient,histological_type,neoplasm_histologic_grade,gender,age_at_initial_pathologic"
    rows = ("TCGA_CS_0001,1,2,2,67", "TCGA_DU_0002,3,1,1,")
    text("lgg/kaggle_3m/data.csv", "\n".join([columns, *rows]) + "\n")


def br35h() -> None:
    """Four images in yes/, three of them outlined at another size; two in no/, named differently."""
    top = "br35h/Br35H"
    for k, name in enumerate(("yes/y0", "yes/y1", "yes/y2", "yes/y3", "no/no0", "no/No12")):
        write(f"{top}/{name}.jpg", make_image(40 + k, 10, 14))
    shapes: dict[str, dict[str, list[dict]]] = {
        "TRAIN": {"y0.jpg": [{"name": "polygon", "all_points_x": [2, 10, 10, 2], "all_points_y": [3, 3, 8, 8]}]},
        "VAL": {
            "y1.jpg": [
                {"name": "ellipse", "cx": 12, "cy": 9, "rx": 8, "ry": 3, "theta": 0.5},
                {"name": "rect", "x": 20, "y": 14, "width": 6, "height": 4},
            ]
        },
        "TEST": {"y2.jpg": [{"name": "circle", "cx": 20, "cy": 6, "r": 4.5}]},
    }
    for place, drawn in shapes.items():
        entries = {}
        for name, own in drawn.items():
            write(f"{top}/Br35H-Mask-RCNN/{place}/{name}", make_image(40 + int(name[1])))
            regions = [{"shape_attributes": shape, "region_attributes": {}} for shape in own]
            entries[f"{name}999"] = {"filename": name, "size": 999, "regions": regions, "file_attributes": {}}
        text(f"{top}/Br35H-Mask-RCNN/{place}/annotations_{place.lower()}.json", json.dumps(entries, indent=1) + "\n")


def cheng() -> None:
    """The picture layout: two neighbours of one lesion, then another head; a number is missing."""
    rows = ((1, 90, (4, 5, 8, 6), "meningioma"), (2, 90, (6, 6, 8, 4), "meningioma"), (7, 91, (15, 1, 5, 3), "glioma"))
    for number, seed, rectangle, _ in rows:
        write(f"cheng/images/{number}.jpg", make_image(seed))
        write(f"cheng/masks/{number}.png", marker(*rectangle))
    lines = [f"{number}.jpg,{kind},0" for number, _, _, kind in rows]
    text("cheng/cheng.csv", "\n".join(["file,kind,block", *lines]) + "\n")


def healthy() -> None:
    """Two subjects, one with two slices."""
    rows = ("h00_t1_sag0.jpg,h00,t1,sag", "h00_fl_axi0.jpg,h00,fl,axi", "h01_t1_cor0.jpg,h01,t1,cor")
    for k, row in enumerate(rows):
        write(f"healthy/images/{row.split(',')[0]}", make_image(100 + k))
    text("healthy/healthy.csv", "\n".join(["file,subject,sequence,plane", *rows]) + "\n")


def notumor() -> None:
    """Three pictures, two of them of one group."""
    rows = ("n0001.jpg,5", "n0002.jpg,6", "n0003.jpg,5")
    for k, row in enumerate(rows):
        write(f"notumor/images/{row.split(',')[0]}", make_image(110 + k))
    text("notumor/notumor.csv", "\n".join(["file,group", *rows]) + "\n")


def uclm() -> None:
    """Semicolons and a byte order mark; green and red masks; the last two scans are of one patient."""
    top = "uclm/BUS-UCLM"
    kinds = {"ALWI_000": ("Benign", 1), "ALWI_001": ("Normal", 1), "CHVI_000": ("Malignant", 2)}
    kinds["CHCO_003"] = ("Normal", 2)
    for k, (name, (kind, channel)) in enumerate(kinds.items()):
        write(f"{top}/images/{name}.png", make_image(120 + k))
        colour = np.zeros((HEIGHT, WIDTH, 3), np.uint8)  # BGR
        colour[..., channel] = marker(2 + k, 3, 9, 5) if kind != "Normal" else 0
        write(f"{top}/masks/{name}.png", colour)
    lines = [f"{name}.png;28x20;{kind};No;No;No" for name, (kind, _) in kinds.items()]
    text(f"{top}/INFO.csv", "\n".join(["\ufeffImage;Resolution;Label;Doppler;Marks;Combined", *lines]) + "\n")


def brest() -> None:
    """A scan of each class; one with an outline of something else."""
    top = "brest/BrEaST/BrEaST-Lesions_USG-images_and_masks"
    for k, name in enumerate(("case001", "case002", "case003")):
        write(f"{top}/{name}.png", make_image(130 + k))
    write(f"{top}/case001_tumor.png", marker(3, 2, 8, 5))
    write(f"{top}/case001_other1.png", marker(15, 12, 10, 6))
    write(f"{top}/case002_tumor.png", marker(5, 6, 4, 9))
    rows = ("Filename,Label", "case001.png,benign", "case002.png,malignant", "case003.png,normal")
    text("brest/BrEaST/image_labels.csv", "\n".join(rows) + "\n")


def folder() -> None:
    """Both organs; with and without mask, label, patient; a mask of class numbers in another format."""
    for k, name in enumerate(("a.png", "b.jpg", "deep/c.png", "d.bmp")):
        write(f"folder/images/{name}", make_image(60 + k))
    write("folder/masks/a.png", marker(3, 4, 5, 6))
    write("folder/masks/deep/c.tif", marker(8, 2, 3, 9) // 255 * 2)
    rows = (
        "scan,label,patient,organ",
        "a.png,malignant,p1,",
        "b,benign,p1,breast",
        "deep/c.png,tumor,p2,",
        "d,,,brain",
    )
    text("folder/labels.csv", "\n".join(rows) + "\n")


def foreign() -> None:
    """Two kinds, one of two images, in colour and in grey."""
    write("foreign/photo/a.png", np.dstack([make_image(70 + c) for c in range(3)]))
    write("foreign/photo/b.jpg", make_image(73))
    write("foreign/x_ray/a.png", make_image(74))


if __name__ == "__main__":
    for source in (busi, busbra, lgg, br35h, cheng, healthy, notumor, uclm, brest, folder, foreign):
        source()
