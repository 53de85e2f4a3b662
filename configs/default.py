"""What every experiment starts from; a config file states only what differs.

Durations are strings: "5 epochs", "200 steps" or, where a length is known, "25%" of the run.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.seed = 0  # order, augmentation, initial parameters, dropout and splits follow from it
    config.tasks = "age,gender"  # or one of them

    config.dataset = dataset = ml_collections.ConfigDict()
    dataset.name = "adience/faces"  # as TFDS names it: data set / builder config
    # Others to train on as well, with commas; of them all but the test set, or fold 0.
    dataset.extra = ""
    dataset.data_dir = ""  # where they are prepared; empty: TFDS_DATA_DIR or ~/tensorflow_datasets
    dataset.prepare = False  # prepare it first where that needs no files of the user's
    dataset.labels = "official"  # age strings that count: "official" or "extended"
    dataset.protocol = "subject"  # "subject": official folds; "random": a split over images
    dataset.test_fold = 0
    dataset.validation_fraction = 0.1  # of the faces outside the test fold

    config.input = ml_collections.ConfigDict()
    # Pixels of the square kept in memory, from which crops are cut; 0: 8/7 of a crop.
    config.input.size = 256
    # Pixels of a crop; 0: what the network is made for. Weights may have seen other sizes.
    config.input.crop_size = 0
    config.input.mean = ()  # RGB, 0 to 255; empty: what the initial weights expect, see `init`,
    config.input.std = ()  # and with random ones the usual ImageNet figures
    # Where decoded pictures are kept: "device", "host", or nowhere but read for every batch,
    # "stream"; "auto" takes the first of these that has the memory. The numbers are the same.
    config.input.placement = "auto"

    config.augment = augment = ml_collections.ConfigDict()  # of training pictures, on the device
    augment.crop = "random"  # or "center"
    augment.flip = 0.5  # probability
    augment.shift = 0.0  # of a crop's size, in any direction
    augment.scale = 0.0  # the factor is 1 - scale to 1 + scale
    augment.rotate = 0.0  # degrees, either way
    augment.warp_probability = 1.0  # of shift, scale and rotate together
    augment.repeat_edge = 0.0  # probability of the picture's edge, not black, beyond it
    augment.brightness = 0.0  # of 255
    augment.contrast = 0.0  # the factor is 1 - contrast to 1 + contrast
    augment.color_probability = 0.5  # of brightness and contrast together
    augment.grey = 0.0  # probability of losing the colours
    augment.low_resolution = 0.0  # probability of losing details
    # Pictures and losses mixed by two, in proportions drawn from Beta(mixup, mixup); 0: not mixed.
    augment.mixup = 0.0

    config.model = ml_collections.ConfigDict()
    config.model.name = "levi_hassner"
    config.model.flavour = ""  # variant of the network; empty: that of the weights, or the usual
    config.model.dropout_rate = 0.5  # before the heads; between the hidden layers of levi_hassner
    config.model.drop_path_rate = 0.2  # stochastic depth, of efficientnet
    config.model.extra_layers = False  # maximum pooling, batch norm and dropout before the heads
    config.model.dtype = "float32"  # of the computation; parameters are float32 always

    # "random", "imagenet", "default" (the weights that come with agenet), a file of weights, or
    # the --workdir of an earlier run
    config.init = "random"
    config.new_parts = "heads"  # what does not come from there; for example "heads/age", or ""
    config.freeze = "none"  # or "backbone", or for example "all but 2 stages"
    # Features of a frozen backbone: computed once and kept in $AGENET_CACHE/features ("auto"), or
    # for every step ("off").
    config.feature_cache = "auto"
    config.feature_cache_bytes = 20_000_000_000  # of all that is kept there
    config.heads = ml_collections.ConfigDict()
    # A softmax over age "groups", or over years ("distribution"), or an "ordinal" model of years.
    config.heads.age = "groups"
    config.heads.gender = "softmax"  # or "sigmoid": a unit for each class

    config.batch_size = 50
    # Parts that pass the network one after the other, where a whole batch is too much for memory.
    config.accumulate = 1
    config.duration = "5 epochs"
    config.label_smoothing = 0.0  # probability that a label is replaced by one drawn from all
    config.class_weights = "none"  # or "balanced": every class weighs the same in the loss
    # Decay of the averages of parameters and batch statistics that are validated and kept, in
    # place of the latest ones; 0: no averages.
    config.ema = 0.0

    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.name = "adam"  # or "sgd"
    config.optimizer.momentum = 0.9  # of "sgd"
    config.optimizer.backbone_scale = 1.0  # learning rate of the backbone, over that of the heads
    config.optimizer.clip_norm = 0.0  # the largest norm that gradients keep; 0: any
    config.optimizer.weight_decay = 0.0  # of kernels; decoupled with "adam", which is AdamW then

    config.schedule = schedule = ml_collections.ConfigDict()
    schedule.name = "constant"  # "constant", "piecewise" or "cosine"
    schedule.learning_rate = 1e-4  # the largest one
    schedule.warmup = "0 steps"  # linear from zero, before the schedule proper
    schedule.boundaries = ("25%", "50%", "75%")  # of "piecewise"
    schedule.scales = (1.0, 0.2, 0.04, 0.008)  # of "piecewise": between the boundaries

    # The state that is kept: that of the smallest loss, of the largest other metric, or the "last".
    config.best = "validation/loss"
    # How long that may go without getting better before the run ends, such as "2 epochs"; empty: to
    # the end of the duration.
    config.patience = ""
    # Of each face that the report tests: 1, its middle; 2, the mirror image, too; 4, both of the
    # whole picture, too. The answer is the mean of theirs; a Predictor's is that of one.
    config.test_views = 1
    config.evaluate_every = "1 epochs"
    config.checkpoint_every = "1 epochs"  # what an interruption that gives no notice can cost
    config.log_every = "20 steps"
    config.tensorboard = True
    # From here on a field that does not exist is an error.
    return config.lock()
