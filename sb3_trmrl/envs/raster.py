"""Plain images for the families without a 3-D scene."""

import numpy as np

SIZE = 240
WHITE, GREY, BLUE, RED = (255, 255, 255), (200, 200, 200), (40, 90, 200), (200, 50, 40)


def disc(image: np.ndarray, centre: np.ndarray, radius: float, colour: tuple[int, int, int], half_width: float) -> None:
    """
    Draw a filled disc into an image of the square [-half_width, half_width]^2, y up.

    :param image: ``(SIZE, SIZE, 3)`` uint8, changed in place.
    :param centre: ``(2,)`` in the units of the square.
    :param radius: In the same units.
    :param colour: RGB.
    :param half_width: Half the square's width.
    """
    axis = (np.arange(SIZE) + 0.5) / SIZE * 2 * half_width - half_width
    inside = (axis[None, :] - centre[0]) ** 2 + (-axis[:, None] - centre[1]) ** 2 <= radius**2
    image[inside] = colour
