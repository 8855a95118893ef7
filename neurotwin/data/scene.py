"""The picture behind a stimulus that is a window which moves with the gaze."""

import numpy as np

__all__ = ["window_of"]


def window_of(
    picture: np.ndarray, center: np.ndarray, size: tuple[int, int], pixels_per_degree: float
) -> np.ndarray:  # fmt: skip
    """What a window shows of a picture, (T, H, W) uint8, bilinearly interpolated; it stops at the picture's edges.

    Parameters
    ----------
    picture
        (rows, columns), pixels from 0 to 255.
    center
        (T, 2) middle of the window, right and up of the picture's middle, degrees.
    size
        H and W, pixels.
    pixels_per_degree
        Of picture and window.
    """
    size, extent = np.array(size), np.array(picture.shape)
    corner = (extent - size) / 2 + center[:, ::-1] * [-1, 1] * pixels_per_degree
    corner = np.clip(corner, 0, extent - size - 1.001)
    whole = corner.astype(int)
    dy, dx = (corner - whole).astype(np.float32).T[:, :, None, None]
    windows = np.lib.stride_tricks.sliding_window_view(picture, (size[0] + 1, size[1] + 1))
    patch = windows[whole[:, 0], whole[:, 1]].astype(np.float32)
    patch = patch[:, :-1] + dy * np.diff(patch, axis=1)
    return np.clip(np.rint(patch[:, :, :-1] + dx * np.diff(patch, axis=2)), 0, 255).astype(np.uint8)
