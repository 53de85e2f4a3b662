"""The default of every setting; other config files state only what differs.

Durations are strings: "5 epochs", "200 steps" or, if the length of the run is known, "25%" of it.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.seed = 0  # determines order, augmentation, initial parameters, dropout and splits
    config.tasks = "age,gender"  # or one of them

    config.dataset = dataset = ml_collections.ConfigDict()
    dataset.name = "adience/faces"  # the name in TFDS: data set / builder config
    # Further data sets to train on, separated by commas: all of them but the test set, or fold 0.
    dataset.extra = ""
    # Of prepared data sets, or an address such as s3://bucket/data; empty: TFDS_DATA_DIR or
    # ~/tensorflow_datasets.
    dataset.data_dir = ""
    dataset.prepare = False  # prepare it first, if that needs no files of the user's
    dataset.labels = "official"  # mapping of age strings: "official" or "extended"
    dataset.protocol = "subject"  # "subject": official folds; "random": a split over images
    dataset.test_fold = 0
    dataset.validation_fraction = 0.1  # of the faces outside the test fold
    # How often training faces are drawn: all equally ("uniform"), or so that all age groups
    # ("age_balanced") or all combinations of the tasks' classes ("class_balanced") are equally
    # frequent. An epoch has as many steps either way. Faces without these labels keep their share.
    dataset.sampling = "uniform"

    config.input = ml_collections.ConfigDict()
    # Side in pixels of the images kept in memory, from which crops are cut; 0: 8/7 of a crop.
    config.input.size = 256
    # Side in pixels of a crop, which the network sees; 0: the size that it was designed for.
    config.input.crop_size = 0
    config.input.mean = ()  # RGB, 0 to 255; empty: that of the initial weights, see `init`,
    config.input.std = ()  # or, if these are random, that of ImageNet
    # Where decoded images are kept: "device", "host", or "stream" to decode them for every batch;
    # "auto" takes the first of these that has the memory. Results do not depend on it.
    config.input.placement = "auto"

    config.augment = augment = ml_collections.ConfigDict()  # of training images, on the device
    augment.crop = "random"  # or "center"
    augment.flip = 0.5  # probability
    augment.shift = 0.0  # of a crop's size, in any direction
    augment.scale = 0.0  # the factor is 1 - scale to 1 + scale
    augment.rotate = 0.0  # degrees, either way
    augment.warp_probability = 1.0  # of shift, scale and rotate together
    augment.repeat_edge = 0.0  # probability of repeating the image's edge beyond it, not black
    augment.brightness = 0.0  # of 255
    augment.contrast = 0.0  # the factor is 1 - contrast to 1 + contrast
    augment.color_probability = 0.5  # of brightness and contrast together
    augment.grey = 0.0  # probability of removing the colours
    augment.low_resolution = 0.0  # probability of reducing the resolution
    # RandAugment: the number of operations, drawn from 14 for each image, and their magnitude, from
    # 0 to 30; 0 operations: off. Two operations of magnitude 9 are usual.
    augment.randaugment = 0
    augment.randaugment_magnitude = 9.0
    augment.erase = 0.0  # random erasing: probability of setting a rectangle to the mean colour
    augment.erase_area = 0.33  # the largest share of the image that is erased; the smallest: 0.02
    # Mixes pairs of images and their losses in a proportion drawn from Beta(mixup, mixup); 0: off.
    augment.mixup = 0.0
    # CutMix: likewise, but with a box of one image in the other. With both, each batch takes one.
    augment.cutmix = 0.0

    config.model = ml_collections.ConfigDict()
    config.model.name = "levi_hassner"
    config.model.flavour = ""  # variant of the network; empty: that of the weights, or its default
    config.model.dropout_rate = 0.5  # before the heads; between the hidden layers of levi_hassner
    config.model.drop_path_rate = 0.2  # stochastic depth, of efficientnet
    config.model.extra_layers = False  # maximum pooling, batch norm and dropout before the heads
    config.model.dtype = "float32"  # or "bfloat16"; of the computation, parameters are float32

    # Initial weights: "random", "imagenet", "default" (the bundled weights), a file of weights,
    # the --workdir of an earlier run, or the address of one of these, such as hf://user/name.
    config.init = "random"
    config.new_parts = "heads"  # parts that are initialised at random, such as "heads/age", or ""
    config.freeze = "none"  # or "backbone", or for example "all but 2 stages"
    # Features of a frozen backbone are computed once and cached in $AGENET_CACHE/features ("auto"),
    # or computed in every step ("off").
    config.feature_cache = "auto"
    config.feature_cache_bytes = 20_000_000_000  # limit of that cache
    config.heads = ml_collections.ConfigDict()
    # A softmax over age "groups" or over years ("distribution"), or an "ordinal" model of years.
    config.heads.age = "groups"
    config.heads.gender = "softmax"  # or "sigmoid": one unit for each class

    config.batch_size = 50
    # Number of parts of a batch that pass through the network one after the other, to save memory.
    config.accumulate = 1
    config.duration = "5 epochs"
    config.label_smoothing = 0.0  # probability that a label is replaced by one drawn from all
    config.class_weights = "none"  # or "balanced": every class has the same weight in the loss
    # Knowledge distillation: learns from the predictions of a teacher besides the labels. The
    # teacher is a network (the --workdir of a run, a file of weights, or "default"), which sees the
    # same augmented images, or a file of predictions (.npz), see configs/README.md; empty: none.
    config.distill = ml_collections.ConfigDict()
    config.distill.teacher = ""
    config.distill.weight = 0.5  # of the teacher's predictions in the loss; labels have the rest
    config.distill.temperature = 2.0  # softens both predictions; 1: as they are
    # Decay of moving averages of parameters and batch statistics, which are validated and kept in
    # place of the latest ones; 0: off.
    config.ema = 0.0

    config.optimizer = ml_collections.ConfigDict()
    # "adam", "adamw" (the same with weight decay), "lion", "lamb", "sgd", "rmsprop", "adafactor" or
    # "muon" (backbone; Adam for the rest). "lion" takes a rate 3 to 10 times smaller than "adam";
    # that of "lamb" and "adafactor" is relative to the size of the parameters.
    config.optimizer.name = "adam"
    config.optimizer.momentum = 0.9  # of "sgd" and "rmsprop"
    config.optimizer.backbone_scale = 1.0  # learning rate of the backbone relative to the heads
    # The learning rate of a stage of the backbone relative to that of the next one, or the heads.
    config.optimizer.layer_decay = 1.0
    config.optimizer.clip_norm = 0.0  # gradients are scaled down to this norm; 0: off
    # Of kernels; decoupled, as in AdamW, except with "sgd", "rmsprop" and "lamb".
    config.optimizer.weight_decay = 0.0

    config.schedule = schedule = ml_collections.ConfigDict()
    # "constant", "piecewise", "piecewise_epochs", "cosine", "polynomial" or "one_cycle".
    schedule.name = "constant"
    schedule.learning_rate = 1e-4  # the highest one
    # Linear from zero, before the schedule itself. "one_cycle" rises by half a cosine from 1/25 of
    # the rate, for so long or, if this is zero, for 30 % of the run.
    schedule.warmup = "0 steps"
    # Of both kinds of "piecewise": the rate is multiplied by another scale from each boundary on.
    # "piecewise_epochs" moves boundaries up to the start of an epoch, as the reference report does.
    schedule.boundaries = ("25%", "50%", "75%")
    schedule.scales = (1.0, 0.2, 0.04, 0.008)
    schedule.power = 1.0  # of "polynomial"; 1: linear
    schedule.final_scale = 0.0  # the rate at the end of "cosine" and "polynomial", of the highest

    # The state that is kept: the one with the lowest loss or error, the highest other metric, or
    # the "last". Where ages are known in years, "validation/age_mae" and "validation/age_cs5" too.
    config.best = "validation/loss"
    # The run ends early if that has not improved for so long, such as "2 epochs"; empty: never.
    config.patience = ""
    # Views of each test image whose predictions are averaged: 1, its centre; 2, the mirrored centre
    # as well; 4, both of the whole image as well. A Predictor uses one.
    config.test_views = 1
    config.evaluate_every = "1 epochs"
    config.checkpoint_every = "1 epochs"  # the most that an interruption without notice can cost
    config.log_every = "20 steps"
    # Where scalars, config, lineage and report are logged, too: any of "tensorboard", "mlflow" and
    # "wandb", see agenet/runs/README.md.
    config.trackers = ("tensorboard",)
    # From here on a field that does not exist is an error.
    return config.lock()
