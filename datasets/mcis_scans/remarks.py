"""What somebody should look at before a set is trained on: kinds of remarks, and the checks of a scan and its mask."""

import cv2
import numpy as np

BLANK_SPREAD = 4
"""Grey values between the darkest and the brightest pixel up to which a picture is blank."""
BORDER = 0.9
"""Share of the border from which on a mask is taken for inverted, if it covers most of the picture as well."""
DARK = 2
"""Largest grey value of the black around a scan."""
ON_BLACK = 0.95
"""Share of a mask's pixels on black from which on it is remarked."""

THIN = 3.0
"""Pixels from the middle of a line to its edge, up to which a lesion may be a drawn line."""
FILLED = 0.5
"""Share of the area that it encloses from which on a mask is taken for an area."""
GREY = (16, 239)
"""Grey values that are neither near-black nor near-white."""
SAME_GREY = 8
"""How much a grey value may change when a picture is compressed by JPEG."""
LEVELS = 16
"""Grey values that a mask must have to be a picture."""

BLANK = "blank"
BLANK_FRAME = "blank_frame"
COVERS_MOST = "covers_most"
MASK_ON_BLACK = "mask_on_black"
OUTLINE = "outline"
OTHER_NAME = "other_name"
OTHER_ENCODING = "other_encoding"
PASSED_OVER = "passed_over"
OTHER_FORMAT = "other_format"
MASK_RULE = "mask_rule"
FRAMES_WITHOUT_ROW = "frames_without_row"
WHOLE_VOLUME = "whole_volume"
NOT_OUTLINED = "not_outlined"
JOINED_MASKS = "joined_masks"
OTHER_MASK = "other_mask"
PATIENT_SPELLINGS = "patient_spellings"
NO_PATIENT = "no_patient"
SEVERAL_PATIENTS = "several_patients"
SAME_PICTURE = "same_picture"
SAME_MASK = "same_mask"
NO_ATTRIBUTE = "no_attribute"
COLUMN = "column"

REMARKS = {
    BLANK: "blank pictures, in which all pixels have nearly the same value",
    BLANK_FRAME: "blank frames of volumes, left out",
    COVERS_MOST: "masks that cover more than half of their picture; are they inverted?",
    MASK_RULE: "masks of which not simply 0 is background, and the rule; is it the right one?",
    MASK_ON_BLACK: "masks that lie where their picture is black; are they of another picture?",
    OUTLINE: "masks that are outlines, not areas; fill them",
    OTHER_NAME: "scans found under a name with another suffix or case than in labels.csv",
    OTHER_ENCODING: "tables that are not in UTF-8, read as Windows-1252; are the names right?",
    PASSED_OVER: "files under images/ or masks/ that are no scans, passed over",
    OTHER_FORMAT: "files under images/ or masks/ in a format that is not read; convert them to NIfTI, DICOM or PNG",
    FRAMES_WITHOUT_ROW: "files of which some frames have no row in labels.csv; these frames are left out",
    WHOLE_VOLUME: "volumes whose every slice counts as a lesion scan, since one row labels them and no mask says where",
    NOT_OUTLINED: "lesion scans without a mask; they count as not outlined",
    JOINED_MASKS: "scans with several masks, which were joined",
    OTHER_MASK: "scans with outlines of something other than a lesion, which are ignored",
    PATIENT_SPELLINGS: "patients written in several ways, which count as one",
    NO_PATIENT: "rows that say that the patient is unknown (n/a, -, ?, #N/A ...), which count as empty",
    SEVERAL_PATIENTS: "the same picture, or files of one study, under several patients",
    SAME_PICTURE: "pictures that occur several times",
    SAME_MASK: "the same mask for several pictures; at most one can be right",
    NO_ATTRIBUTE: "attributes of scans that cannot be read, or have no name in the vocabulary; they are left out",
    COLUMN: "columns of labels.csv that are not kept as attributes of the scans",
}
"""Kind -> heading in the audit."""


def is_blank(image: np.ndarray) -> bool:
    """Whether all pixels of a scan, uint8 (H, W, 3), have nearly the same value."""
    return all(int(np.ptp(image[..., channel])) <= BLANK_SPREAD for channel in range(3))


def is_inverted(mask: np.ndarray) -> bool:
    """Whether a mask, uint8 {0,1} (H, W, 1), covers most of the picture and of its border."""
    plane = mask[..., 0]
    border = np.concatenate([plane[0], plane[-1], plane[1:-1, 0], plane[1:-1, -1]])
    return bool(plane.mean() > 0.5 and border.mean() > BORDER)


def of_mask(image: np.ndarray, mask: np.ndarray) -> tuple[str, ...]:
    """Remarks on a mask that is not empty."""
    found: tuple[str, ...] = (COVERS_MOST,) if mask.mean() > 0.5 else ()
    under = image[mask[..., 0] > 0].max(axis=1)
    black = (under <= DARK).mean() > ON_BLACK and (image > DARK).any()
    found += (MASK_ON_BLACK,) if black else ()
    return (*found, OUTLINE) if is_outline(mask) else found


def is_outline(mask: np.ndarray) -> bool:
    """Whether a mask, uint8 {0,1} (H, W, 1), is drawn as lines: closed ones, or thin ones around an area."""
    plane = np.ascontiguousarray(mask[..., 0])
    contours, _ = cv2.findContours(plane, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled, hulls = np.zeros_like(plane), np.zeros_like(plane)
    cv2.drawContours(filled, contours, -1, 1, cv2.FILLED)
    for contour in contours:
        cv2.fillConvexPoly(hulls, cv2.convexHull(contour), 1)
    area = int(plane.sum())
    if area < FILLED * int(filled.sum()):
        return True
    # the frame of zeros, so that the picture's border is an edge as well
    reach = cv2.distanceTransform(cv2.copyMakeBorder(plane, 1, 1, 1, 1, cv2.BORDER_CONSTANT), cv2.DIST_L2, 5).max()
    return bool(reach <= THIN and area < FILLED * int(hulls.sum()))


def is_picture(mask: np.ndarray, image: np.ndarray) -> bool:
    """Whether a mask file, uint8 (H, W, 3), is the scan itself, perhaps painted over; `image` is the scan, as large.

    Of the scan's grey pixels, most are grey in the mask too, and nearly all of these have the scan's value. A mask of
    a few levels is none, and neither is a lesion that is cut out of the scan.
    """
    drawn, scan = (np.median(one, axis=2).astype(np.int16) for one in (mask, image))
    grey = (scan >= GREY[0]) & (scan <= GREY[1])
    both = grey & (drawn >= GREY[0]) & (drawn <= GREY[1])
    if not both.any() or both.sum() < 0.5 * grey.sum() or len(np.unique(drawn[both])) < LEVELS:
        return False
    return bool((np.abs(drawn - scan)[both] <= SAME_GREY).mean() > 0.9)
