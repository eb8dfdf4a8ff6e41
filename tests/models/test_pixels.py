"""What a model paints comes back as the picture it was made of."""

import numpy as np
import tiny

from emerdiff_probe.models.pixels import to_pixels


def test_pixels_of_a_tensor_are_the_image_it_was_made_of(model):
    image = tiny.picture()
    assert np.array_equal(to_pixels(model.to_tensor(image))[0], image)
    assert set(np.unique(to_pixels(model.to_tensor(image)[0] * 1e6))) <= {0, 255}  # beyond the range: clipped
