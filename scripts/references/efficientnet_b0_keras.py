"""Trains the reference report's EfficientNet-B0 in Keras, with a frozen backbone and two heads.

python scripts/references/efficientnet_b0_keras.py

The age head is a softmax, the gender head two sigmoids. Adam starts at 1e-3, which is divided by
five after each quarter of the training; batches are of 64. The report trained the backbone on
60,000 faces of IMDb-Wiki before: --weights takes a file of such weights.
"""

import os

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import tensorflow as tf
from keras import layers

from agenet.errors import one_line_errors
from scripts.references.faces import CLASSES, Faces, getting, parser, read_faces


def create_model(size: int, weights: str) -> keras.Model:
    """Creates the network, which takes RGB, 0 to 255, and normalises it."""
    none = None if weights == "none" else weights
    backbone = keras.applications.EfficientNetB0(
        include_top=False, weights=none, input_shape=(size, size, 3), pooling="avg"
    )
    backbone.trainable = False
    inputs = keras.Input((size, size, 3))
    # Frozen, so batch normalisation stays in inference mode. No dropout, since it is one of the
    # extra layers that made the report's results worse.
    x = backbone(inputs, training=False)
    age = layers.Dense(CLASSES["age"], activation="softmax", name="age")(x)
    gender = layers.Dense(CLASSES["gender"], activation="sigmoid", name="gender")(x)
    return keras.Model(inputs, {"age": age, "gender": gender})


def dataset(faces: Faces, size: int, batch_size: int, train: bool) -> tf.data.Dataset:
    """Batches of images, one-hot labels, and weights of 0 where a label is unknown."""

    def prepare(image: tf.Tensor, labels: dict[str, tf.Tensor]) -> tuple:
        if train:
            image = tf.image.random_flip_left_right(tf.image.random_crop(image, (size, size, 3)))
        else:
            image = tf.image.resize_with_crop_or_pad(image, size, size)
        targets = {task: tf.one_hot(label, CLASSES[task]) for task, label in labels.items()}
        known = {task: tf.cast(label >= 0, tf.float32) for task, label in labels.items()}
        return tf.cast(image, tf.float32), targets, known

    data = tf.data.Dataset.from_tensor_slices((faces.images, faces.labels))
    data = data.shuffle(len(faces.images)) if train else data
    return data.map(prepare, tf.data.AUTOTUNE).batch(batch_size).prefetch(tf.data.AUTOTUNE)


def main() -> None:
    options = parser(__doc__.splitlines()[0], size=224, batch_size=64)
    options.add_argument(
        "--weights", default="imagenet", help="imagenet (fetched by Keras), none, or a .weights.h5"
    )
    args = options.parse_args()
    keras.utils.set_random_seed(args.seed)
    train, test = read_faces(args, ("age", "gender"))
    with getting(args.weights):
        model = create_model(args.size, args.weights)
    steps = -(-len(train.images) // args.batch_size) * args.epochs
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay(
        [steps // 4, steps // 2, 3 * steps // 4], [1e-3, 2e-4, 4e-5, 8e-6]
    )
    model.compile(
        optimizer=keras.optimizers.Adam(schedule),
        loss={"age": "categorical_crossentropy", "gender": "binary_crossentropy"},
        weighted_metrics={"age": ["categorical_accuracy"], "gender": ["categorical_accuracy"]},
    )
    model.fit(
        dataset(train, args.size, args.batch_size, train=True),
        epochs=args.epochs,
        validation_data=dataset(test, args.size, args.batch_size, train=False),
        shuffle=False,  # The data set is shuffled already.
        verbose=2,
    )


if __name__ == "__main__":
    with one_line_errors():
        main()
