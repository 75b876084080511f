import numpy as np
import pytest
import transformers
from measured_models import Models, tiny_vit

from isobasin import scramble


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    folder = tmp_path_factory.mktemp("models")
    a, c = tiny_vit(folder / "a", 0), tiny_vit(folder / "c", 1)
    scramble(a, folder / "b", seed=3, condition=4, verify=False)
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 8), dtype=np.uint8)
    found = Models(a, folder / "b", c, folder / "images.npz")
    np.savez(found.data, x_test=images, y_test=np.arange(60) % 3)
    batch = next(found.examples().batches(60))
    batch.pop("labels")
    model = transformers.AutoModelForImageClassification.from_pretrained(a)
    np.savez(found.data, x_test=images, y_test=model(**batch).logits.argmax(-1).numpy())
    return found
