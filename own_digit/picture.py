"""Any picture, as a camera, a scanner, a browser or NumPy gives it, as 8-bit RGB."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from scipy import ndimage
from torch import Tensor

Picture = str | Path | bytes | Image.Image | np.ndarray | Tensor

SIDE = 192  # pixels of the longer side of a picture when paper and ink are told apart
WHITE = 2.0  # transparent pixels are white unless black shows this much more


def open_picture(picture: Picture) -> Image.Image:
    """The picture, upright, as 8-bit RGB. Raises `ValueError` for what is no picture, and says what would help."""
    if isinstance(picture, np.ndarray | Tensor):
        return _to_rgb(_from_array(picture))
    if isinstance(picture, str) and "://" in picture:
        raise ValueError(f"{picture} is an address; download the picture, and give the file's path")
    if not isinstance(picture, str | Path | bytes | Image.Image):
        raise ValueError(f"a picture is a path, a PIL image or an array, not {type(picture).__name__}")
    path = picture if isinstance(picture, str | Path) else "the picture"
    source = io.BytesIO(picture) if isinstance(picture, bytes) else picture
    try:
        return _to_rgb(source if isinstance(source, Image.Image) else Image.open(source))
    except FileNotFoundError:
        raise
    except Image.DecompressionBombError as error:
        most = 2 * Image.MAX_IMAGE_PIXELS // 10**6
        raise ValueError(f"{path} is too large; scale it down to less than {most} megapixels") from error
    except Exception as error:  # Pillow raises nearly anything on damaged or unusual files
        raise ValueError(f"{path} is no image that can be read ({error}); save it as PNG or JPEG") from error


def _to_rgb(opened: Image.Image) -> Image.Image:
    upright = ImageOps.exif_transpose(opened)
    if upright.mode in ("I", "F") or upright.mode.startswith("I;16"):  # more than 8 bits a pixel
        values = np.asarray(upright, dtype=np.float64)
        upright = _from_array((values - values.min()) / max(np.ptp(values), 1e-9))
    if "A" in upright.mode or "transparency" in upright.info:
        grounds = (Image.new("RGBA", upright.size, color) for color in ("white", "black"))
        white, black = (Image.alpha_composite(ground, upright.convert("RGBA")) for ground in grounds)
        shown = [np.asarray(layer.convert("L")).std() for layer in (white, black)]
        upright = white if WHITE * shown[0] > shown[1] else black
    return upright.convert("RGB")


def _from_array(array: np.ndarray | Tensor) -> Image.Image:
    if isinstance(array, Tensor):
        array = array.detach().cpu()
        array = (array.float() if array.is_floating_point() else array).numpy()
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or array.ndim == 3 and array.shape[2] not in (3, 4) or 0 in array.shape:
        raise ValueError(f"an array must be [H, W], [H, W, 3] or [H, W, 4], got {list(array.shape)}")
    if array.dtype == bool or np.issubdtype(array.dtype, np.floating):
        if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            raise ValueError("a float array must hold values in [0, 1] only")
        array = (255 * array).round().astype(np.uint8)
    if array.dtype != np.uint8:
        raise ValueError(f"an array must be uint8, bool or float, got {array.dtype}")
    return Image.fromarray(array)


def shrink(picture: Image.Image) -> np.ndarray:
    """The picture's colors, float [H, W, 3] from 0 to 1, its longer side `SIDE` pixels; small ones are enlarged."""
    scale = SIDE / max(picture.size)
    size = [max(round(scale * side), 1) for side in picture.size]
    small = picture.resize(size, Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.BOX)
    return np.asarray(small, np.float32) / 255


def bounding_box(mask: np.ndarray) -> tuple[slice, slice]:
    """The rows and columns that hold all of `mask`, bool [H, W]."""
    return ndimage.find_objects(mask.astype(int))[0]


def border(mask: np.ndarray) -> np.ndarray:
    """The pixels of `mask`, bool [H, W], along the picture's four sides, one after the other."""
    return np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])


def depth(mask: np.ndarray) -> np.ndarray:
    """How far each pixel of `mask` is from the nearest that is not, the picture's outside included; float [pixels]."""
    return ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
