"""``python -m m3d_fast.evaluate``, whose features for herding are trained briefly."""

import sys

from m3d_fast.evaluate import main
from m3d_fast.evaluation import features

EPOCHS, IMAGES = 1, 20  # instead of 5 epochs of 500 images a class

if __name__ == "__main__":
    features.EPOCHS, features.IMAGES = EPOCHS, IMAGES
    sys.exit(main())
