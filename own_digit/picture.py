"""Any picture, as it comes from a camera, a scanner, a browser or NumPy, as 8-bit RGB."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

Picture = str | Path | Image.Image | np.ndarray | Tensor

SIDE = 192  # pixels of the longer side of a picture when paper and ink are judged


def open_picture(picture: Picture) -> Image.Image:
    """The picture, upright, as 8-bit RGB. Raises `ValueError` for what is no picture."""
    if isinstance(picture, np.ndarray | Tensor):
        picture = _from_array(picture)
    elif not isinstance(picture, str | Path | Image.Image):
        raise ValueError(f"a picture is a path, a PIL image or an array, not {type(picture).__name__}")
    path = "the picture" if isinstance(picture, Image.Image) else picture
    try:
        opened = picture if isinstance(picture, Image.Image) else Image.open(picture)
        upright = ImageOps.exif_transpose(opened)
        if upright.mode in ("I", "F") or upright.mode.startswith("I;16"):  # more than 8 bits a pixel
            values = np.asarray(upright, dtype=np.float64)
            upright = _from_array((values - values.min()) / max(np.ptp(values), 1e-9))
        if "A" in upright.mode or "transparency" in upright.info:  # laid over what shows the picture best
            layers = [Image.new("RGBA", upright.size, ground) for ground in ("white", "black")]
            layers = [Image.alpha_composite(layer, upright.convert("RGBA")) for layer in layers]
            upright = max(layers, key=lambda layer: np.asarray(layer.convert("L")).std())
        upright = upright.convert("RGB")
    except FileNotFoundError:
        raise
    except Exception as error:  # Pillow raises nearly anything on damaged or unusual files
        raise ValueError(f"{path} is no image that can be read ({error}); save it as PNG or JPEG") from error
    return upright


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
    """The picture's colors, float [H, W, 3] in [0, 1]; its longer side `SIDE` pixels, be it larger or smaller."""
    scale = SIDE / max(picture.size)
    size = [max(round(scale * side), 1) for side in picture.size]
    small = picture.resize(size, Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.BOX)
    return np.asarray(small, np.float32) / 255


def bounding_box(mask: np.ndarray) -> tuple[slice, slice]:
    """The rows and columns that hold all of `mask`, bool [H, W]."""
    from scipy import ndimage

    return ndimage.find_objects(mask.astype(int))[0]
