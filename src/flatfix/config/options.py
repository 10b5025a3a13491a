"""Every option of every entry point: one line each, with what it accepts and what it means."""

from __future__ import annotations

from flatfix.config.schema import Free, Option, Schema, Target
from flatfix.evaluation.metrics import METRICS

PATHS: Schema = {
    "paths.output": Option(str, "folder of everything that runs write"),
    "paths.cache": Option(str, "folder of decoded pictures and features; safe to delete"),
    "paths.runs": Option(str, "folder of one folder a run"),
    "paths.run": Option(str, "folder of this run"),
}

STORE: Schema = {
    "store.uri": Option(str, "where the dataset versions are: a folder, or s3://bucket/prefix"),
    "store.endpoint_url": Option(str, "address of the S3 server (null: AWS_ENDPOINT_URL, or AWS)", optional=True),
    "store.region": Option(str, "region of the bucket (null: as AWS_REGION or the profile says)", optional=True),
}

DATASET: Schema = {
    "dataset.name": Option(str, "name of the dataset in the store"),
    "dataset.version": Option(str, "version of the dataset; a version never changes"),
    "dataset.source": Target(
        ("flatfix.data.sources.",), "where a version that the store lacks is published from", optional=True
    ),
    "dataset.source.root": Option(
        str, "folder of the pictures, or s3://bucket/prefix: class folders where no file names the classes"
    ),
    "dataset.source.file": Option(
        str,
        "annotations (JSON) or table (CSV; targets in the alphabetical order of the classes) of the pictures, on a "
        "disk or in S3",
    ),
    "dataset.source.download": Option(bool, "download the pictures where the folder lacks them"),
    "dataset.source.num_pictures": Option(int, "pictures to draw", low=2),
    "dataset.source.size": Option(int, "pixels a side of a drawn picture", low=32),
    "dataset.source.seed": Option(int, "seed of the drawn pictures", low=0),
    "dataset.publish": Option(bool, "publish a version that the store lacks (null: only a local store)", optional=True),
    "dataset.offline": Option(bool, "use what the cache holds of an S3 store, and never the network"),
    "dataset.cache_gigabytes": Option(
        float, "most that files fetched from S3 may take on this machine (null: no limit)", above=0, optional=True
    ),
    "dataset.on_bad_image": Option(str, "what publishing does with an unreadable file", choices=("error", "skip")),
    "dataset.allow_duplicates": Option(bool, "publish copies of a picture that lie in different splits"),
    "dataset.split.val_fraction": Option(float, "part drawn for validation", above=0, below=1),
    "dataset.split.test_fraction": Option(float, "part drawn for test", above=0, below=1),
    "dataset.split.seed": Option(int, "seed of the drawn split", low=0),
    "dataset.split.groups": Option(
        str, "keep: a group never straddles splits; stratify: every split gets its share", choices=("keep", "stratify")
    ),
}

TRAINING_DATA: Schema = {
    "dataset.positive_class": Option(
        str, "the class that precision, recall, F1 and AUROC are of (two classes)", optional=True
    ),
    "dataset.image_size": Option(int, "pixels a side that the model sees", low=8, high=4096),
    "dataset.resize": Option(str, "how a picture becomes a square", choices=("squash", "crop", "pad")),
    "dataset.decoded_gigabytes": Option(
        float,
        "most that a split's decoded pixels may take in the cache; a larger one is streamed (null: what the disk has)",
        low=0,
        optional=True,
    ),
    "dataset.batch_size": Option(
        int, "pictures a step and device (auto: as many as its memory takes)", low=1, words=("auto",)
    ),
    "dataset.sampler": Option(
        str, "order of training pictures: shuffled, or every class equally often", choices=("shuffle", "balanced")
    ),
    "dataset.fold": Option(int, "fold of cross-validation that is the validation split", low=0, optional=True),
    "dataset.num_folds": Option(int, "folds that train and val are divided into", low=2, optional=True),
    "dataset.sample_fraction": Option(float, "seeded part of the training split to train on", above=0, high=1),
}

MODEL: Schema = {
    "model.name": Option(str, "backbone: one of ours or any timm model"),
    "model.options": Free("keyword arguments of the backbone, such as drop_rate"),
    "model.pretrained": Option(bool, "load timm's weights from its hub"),
    "model.weights": Option(str, "file of weights to start from (.pth, .safetensors, .ckpt)", optional=True),
    "model.freeze": Option(str, "what does not train", choices=("none", "backbone")),
    "model.cached_views": Option(int, "augmented views a picture to cache with a frozen backbone (0: none)", low=0),
    "model.normalise": Option(
        str,
        "pixel statistics (auto: the weights' when loaded, else the dataset's)",
        choices=("auto", "weights", "data"),
    ),
    "model.tta": Option(
        str,
        "views of a picture that an answer averages: itself, its mirror image too, or all eight turns and mirrors",
        choices=("none", "flip", "dihedral"),
    ),
}

AUGMENT: Schema = {
    "horizontal_flip": Option(bool, "mirror half of the pictures left to right"),
    "vertical_flip": Option(bool, "mirror half of the pictures top to bottom"),
    "rotation_degrees": Option(float, "largest rotation, either way", low=0, high=180),
    "brightness": Option(float, "largest relative change of brightness", low=0, high=1),
    "contrast": Option(float, "largest relative change of contrast", low=0, high=1),
    "saturation": Option(float, "largest relative change of saturation", low=0, high=1),
    "padding": Option(int, "pixels of border that a random crop may move over", low=0),
    "cutout": Option(int, "side in pixels of the square that is blanked (0: none)", low=0),
}

RECIPE: Schema = {
    "optimizer": Target(("torch.optim.", "timm.optim."), "what takes the steps"),
    "optimizer.lr": Option(float, "learning rate at its peak", above=0),
    "optimizer.weight_decay": Option(float, "weight decay (not on norms and biases)", low=0),
    "optimizer.momentum": Option(float, "momentum", low=0, below=1),
    "optimizer.nesterov": Option(bool, "Nesterov's form of momentum"),
    "optimizer.alpha": Option(float, "smoothing of the squared gradients", low=0, below=1),
    "optimizer.opt": Option(str, "timm's name of the optimizer, such as lamb"),
    "scheduler": Target(("flatfix.training.schedulers.",), "how the learning rate moves"),
    "scheduler.warmup_epochs": Option(float, "epochs of linear warm-up", low=0),
    "scheduler.final_ratio": Option(float, "last learning rate over the peak", low=0, high=1),
    "scheduler.every_epochs": Option(int, "epochs between two steps down", low=1),
    "scheduler.gamma": Option(float, "factor of a step down", above=0, below=1),
    "scheduler.warmup_fraction": Option(float, "part of the run in which the learning rate rises", above=0, below=1),
    "scheduler.initial_ratio": Option(float, "first learning rate over the peak", above=0, high=1),
    "scheduler.patience": Option(int, "epochs without progress before a step down", low=1),
    "augment": Target(("flatfix.training.augment.",), "how training pictures are varied"),
    "augment.alpha": Option(float, "both parameters of the Beta distribution of the shares", above=0),
    "augment.first": Target(
        ("flatfix.training.augment.",),
        "how pictures are varied before they are mixed; augment@augment.first=trivial chooses another way",
    ),
    **{f"augment.{name}": option for name, option in AUGMENT.items()},
    **{f"augment.first.{name}": option for name, option in AUGMENT.items()},
    "loss": Target(("flatfix.training.losses.",), "what training minimises"),
    "loss.label_smoothing": Option(float, "label smoothing", low=0, below=1),
    "loss.gamma": Option(float, "how little pictures count that are easy", low=0),
    "loss.class_weights": Option(
        list, "weight of each class in order (auto: classes count alike)", optional=True, words=("auto",)
    ),
}

TRAINER: Schema = {
    "trainer.max_epochs": Option(int, "epochs at most", low=1),
    "trainer.precision": Option(
        str, "auto: bf16-mixed where that is fast, else 32", choices=("auto", "32", "bf16-mixed", "16-mixed")
    ),
    "trainer.accelerator": Option(str, "where to train", choices=("auto", "cpu", "gpu")),
    "trainer.devices": Option(
        int, "processes, each with a device of its own (auto: a GPU each)", low=1, words=("auto",)
    ),
    "trainer.num_nodes": Option(int, "machines that train together, started by torchrun or Slurm", low=1),
    "trainer.channels_last": Option(bool, "keep the channels of a pixel together, as convolutions like it"),
    "trainer.compile": Option(bool, "compile the model with torch.compile: slow to start, then faster on a GPU"),
    "trainer.accumulate": Option(int, "batches whose gradients make one step", low=1),
    "trainer.ema_decay": Option(
        float,
        "judge the moving average of the weights, which keeps this part a step (null: the weights)",
        above=0,
        below=1,
        optional=True,
    ),
    "trainer.checkpoint_every_steps": Option(
        int, "steps between two states to resume from (null: by time and epoch alone)", low=1, optional=True
    ),
    "trainer.checkpoint_every_minutes": Option(
        float, "minutes between two states to resume from (null: by steps and epoch alone)", above=0, optional=True
    ),
    "trainer.gradient_clip": Option(float, "largest gradient norm (null: no clipping)", above=0, optional=True),
    "trainer.decay_norms_and_biases": Option(bool, "apply weight decay to norms and biases too"),
    "trainer.limit_batches": Option(int, "batches of each split to use (null: all)", low=1, optional=True),
    "trainer.overfit_below": Option(float, "train on one batch until its loss is below this", above=0, optional=True),
    "trainer.profile": Option(bool, "print where the time went"),
}

RESUME: Schema = {
    "resume.from": Option(
        str,
        "what to start from: a run id, a file, or auto (the newest unfinished run of this config, else a new one)",
        optional=True,
    ),
    "resume.mode": Option(
        str,
        "continue: the same run goes on; finetune: a new run from its weights; branch: a new run from its full state",
        choices=("continue", "finetune", "branch"),
    ),
}

BOUNDS: Schema = {
    f"callbacks.qualify.{side}_{metric}": Option(
        float, f"{word} validation {metric} of a run that qualifies", optional=True
    )
    for metric in METRICS
    for side, word in (("min", "lowest"), ("max", "highest"))
}

CALLBACKS: Schema = {
    "callbacks.early_stopping.patience": Option(
        int, "epochs without progress before stopping (null: never)", low=1, optional=True
    ),
    "callbacks.early_stopping.delta": Option(float, "progress that counts", low=0),
    "callbacks.qualify.stop_when_qualified": Option(bool, "stop as soon as every bound is reached"),
    **BOUNDS,
}

DECISION: Schema = {
    "decision.calibrate": Option(bool, "fit a temperature on validation, so that probabilities can be believed"),
    "decision.threshold": Option(
        float, "least probability of the positive class (null: 0.5, or by a rule)", above=0, below=1, optional=True
    ),
    "decision.recall_at_least": Option(
        float, "rule: the highest threshold with this recall on validation", above=0, high=1, optional=True
    ),
    "decision.miss_cost": Option(
        float, "rule: the cheapest threshold, a miss costing this many false alarms", above=0, optional=True
    ),
    "decision.review_fraction": Option(
        float,
        "part of the validation pictures, those nearest to the threshold, for a person",
        above=0,
        below=1,
        optional=True,
    ),
}

TRACKING: Schema = {
    "tracking.uri": Option(str, "MLflow server or database"),
    "tracking.experiment": Option(str, "MLflow experiment"),
    "tracking.run_name": Option(str, "name of the run (null: dataset, model and optimizer)", optional=True),
    "tracking.tags": Free("tags of the run"),
    "tracking.system_metrics": Option(bool, "record CPU, memory, disk, network and GPU use"),
}

REGISTRY: Schema = {
    "registry.name": Option(
        str, "registered model (null: when training, the dataset's name; elsewhere, the only one)", optional=True
    ),
}

REGISTRATION: Schema = {
    **REGISTRY,
    "registry.register": Option(bool, "register a run that qualifies as a candidate"),
    "sweep.register": Option(
        str, "which runs of a multirun become candidates, of those that qualify", choices=("best", "all", "none")
    ),
}

SWEEP: Schema = {
    "sweep.name": Option(str, "name of a multirun; a sweep of the same name goes on where it was"),
    "sweep.objectives": Option(
        list, "what a sweep looks for, one or two: validation metrics, latency_ms (a picture), num_parameters"
    ),
    "sweep.n_trials": Option(int, "trials that are to finish: complete, pruned or failed", low=1),
    "sweep.timeout_s": Option(float, "seconds after which no trial begins (null: no limit)", above=0, optional=True),
    "sweep.workers": Option(int, "jobs of a multirun at a time; GPUs, or the processor's cores, are divided", low=1),
    "sweep.storage": Option(str, "database of the studies: sqlite:///…, or postgresql+psycopg2://… for many machines"),
    "sweep.max_retries": Option(int, "times that a trial is tried again whose process died", low=0),
    "sweep.heartbeat_s": Option(int, "seconds between two signs of life of a trial; four missed ones: dead", low=1),
    "sweep.parent_run_id": Option(str, "MLflow run of the multirun; set by it", optional=True),
    "sweep.trial": Option(int, "number of the trial that this run is; set by the sweep", low=0, optional=True),
}

PRUNER: Schema = {
    "pruner": Target(("optuna.pruners.",), "which trials end before their last epoch"),
    "pruner.percentile": Option(float, "percentage of the earlier trials that is good enough", above=0, below=100),
    "pruner.n_startup_trials": Option(int, "trials that complete before any is pruned", low=0),
    "pruner.n_warmup_steps": Option(int, "no trial is pruned before this epoch", low=0),
    "pruner.interval_steps": Option(int, "epochs between two looks", low=1),
    "pruner.min_resource": Option(int, "epochs that every trial has", low=1),
    "pruner.max_resource": Option(int, "epochs of a whole trial", low=1),
    "pruner.reduction_factor": Option(int, "one of so many goes on at each step", low=2),
    "pruner.min_early_stopping_rate": Option(int, "steps that are left out at the start", low=0),
}

RUNTIME: Schema = {
    "runtime": Option(
        str,
        "what runs the model (auto: the fastest here that the card permits)",
        choices=("auto", "onnxruntime", "openvino"),
    ),
    "precision": Option(
        str, "number format of the runtime (auto: the fastest that the card permits)", choices=("auto", "fp32", "bf16")
    ),
}

GATES: Schema = {
    "gates.offline_evaluation": Option(
        bool, "evaluate on the test split of the dataset's newest version where that was not done yet"
    ),
    "gates.not_worse": Option(bool, "refuse what a paired test finds worse than the version in production"),
    "gates.better": Option(bool, "refuse what a paired test does not find better than the version in production"),
    "gates.alpha": Option(float, "level of significance of both, one-sided", low=0.001, below=0.5),
    "gates.max_class_drop": Option(float, "most recall that a class may lose", low=0, high=1, optional=True),
    "gates.max_calibration_error": Option(
        float, "largest expected calibration error on test", low=0, high=1, optional=True
    ),
    "gates.max_package_megabytes": Option(float, "largest package", above=0, optional=True),
    "gates.max_latency_ms": Option(float, "longest median time of one picture on this machine", above=0, optional=True),
    "gates.self_test": Option(bool, "the package loads, and answers its own reference pictures"),
}

MLFLOW: Schema = {name: option for name, option in TRACKING.items() if name in ("tracking.uri", "tracking.experiment")}

TRAIN: Schema = {
    "seed": Option(int, "seed of weights, order and augmentation", low=0, high=2**32 - 1),
    "monitor": Option(str, "validation metric that chooses the checkpoint", choices=tuple(METRICS)),
    "report": Option(bool, "write report.html and its figures, beside the tables and metrics"),
    **DATASET,
    **TRAINING_DATA,
    **STORE,
    **MODEL,
    **RECIPE,
    **TRAINER,
    **RESUME,
    **DECISION,
    **CALLBACKS,
    **TRACKING,
    **REGISTRATION,
    **SWEEP,
    **PRUNER,
    **PATHS,
}

PROMOTE: Schema = {
    "action": Option(
        str,
        "what to do",
        choices=("promote", "rollback", "register", "info", "history", "compare"),
    ),
    "metric": Option(str, "validation metric that chooses: F1, Accuracy, Loss, … in any case", optional=True),
    "stage": Option(str, "where the best version goes", choices=("staging", "production")),
    "version": Option(int, "promote this version, whatever the metric says", low=1, optional=True),
    "force": Option(bool, "pass over the gates and staging; needs version and reason"),
    "reason": Option(str, "why, for the history", optional=True),
    "run_id": Option(str, "register: the run whose model becomes a candidate", optional=True),
    "to": Option(int, "rollback: version to return to (null: the one before)", low=1, optional=True),
    "a": Option(str, "compare: version or alias", optional=True),
    "b": Option(str, "compare: version or alias", optional=True),
    "dry_run": Option(bool, "show what would move, and what the gates say, and move nothing"),
    "dataset.version": Option(
        str, "candidates trained on this dataset version (null: that of the newest candidate)", optional=True
    ),
    **GATES,
    **REGISTRY,
    **MLFLOW,
    **STORE,
    **PATHS,
}

EVALUATE: Schema = {
    "alias": Option(str, "which version: production, staging, or any alias of the registered model"),
    "version": Option(int, "which version by its number, in place of the alias", low=1, optional=True),
    "data": Option(
        str,
        "labelled pictures: a folder of class folders, or a table (.csv) with columns path and label (null: dataset)",
        optional=True,
    ),
    "dataset.name": Option(str, "dataset in the store (null: the one that the model was trained on)", optional=True),
    "dataset.version": Option(str, "version of the dataset (null: the newest)", optional=True),
    "split": Option(str, "split of the dataset version (null: test)", choices=("train", "val", "test"), optional=True),
    "limit": Option(int, "pictures at most, a seeded share of every class (null: all)", low=1, optional=True),
    "seed": Option(int, "seed of the pictures that limit keeps", low=0),
    "run_name": Option(str, "name of the evaluation's run (null: model, version and data)", optional=True),
    "outdir": Option(str, "folder for the report and the tables"),
    "log_mlflow": Option(bool, "log the evaluation as a run in MLflow, linked to the version"),
    "batch_size": Option(int, "pictures a step", low=1),
    "plot": Option(str, "only: draw the confusion matrix of csv, and nothing else", choices=("only",), optional=True),
    "csv": Option(str, "plot=only: table with columns label and prediction", optional=True),
    **RUNTIME,
    **REGISTRY,
    **MLFLOW,
    **STORE,
    **PATHS,
}

PREDICT: Schema = {
    "checkpoint": Option(str, "checkpoint of a run, or the run's folder", optional=True),
    "alias": Option(
        str,
        "in place of a checkpoint, a registered version: production, staging, any alias, or its number",
        optional=True,
    ),
    "input": Option(str, "pictures: a folder, one file, a list (.txt, .csv with a column path) or s3://bucket/prefix"),
    "output": Option(str, "file to write, .parquet or .csv"),
    "batch_size": Option(int, "pictures a step", low=1),
    "accelerator": Option(str, "where a checkpoint predicts", choices=("auto", "cpu", "gpu")),
    **RUNTIME,
    **REGISTRY,
    "tracking.uri": MLFLOW["tracking.uri"],
    **PATHS,
}

SERVE: Schema = {
    "alias": Option(str, "the version to follow: production, staging, or any alias of the registered model"),
    "host": Option(str, "address to listen on; 0.0.0.0 for every network of this machine"),
    "port": Option(int, "port to listen on (0: a free one)", low=0, high=65535),
    "workers": Option(int, "processes that share the port, each with its own copy of the model", low=1, high=64),
    "poll_s": Option(float, "seconds between two looks at the alias", low=0.1),
    "batch.size": Option(int, "pictures at most that are computed at once", low=1, high=256),
    "batch.wait_ms": Option(float, "longest that a batch waits for pictures that are being decoded", low=0, high=1000),
    "limits.waiting": Option(int, "requests in a worker, and pictures of them, a 16th to explain; more get 503", low=1),
    "limits.waiting_mb": Option(int, "megabytes of their bodies; body_mb or more", low=1),
    "limits.body_mb": Option(int, "largest body of a request, in megabytes", low=1, high=1024),
    "limits.megapixels": Option(float, "largest picture, as its header declares it", above=0, high=160),
    "limits.files": Option(int, "pictures of one request", low=1, high=1000),
    "limits.deadline_s": Option(float, "seconds after which a request is answered with 504", above=0),
    "limits.body_s": Option(float, "seconds that a client may take to send a body, deadline_s at most", above=0),
    "limits.headers_s": Option(float, "seconds that a client may take to send the headers", above=0),
    "limits.idle_s": Option(float, "seconds that a connection without a request stays open", low=1),
    "limits.drain_s": Option(float, "seconds that requests in flight have left after SIGTERM", low=0),
    "hosts": Option(list, "host names that requests may be for, but /livez and /readyz; empty: any"),
    "auth.keys": Option(
        str, "file of API keys, from python -m flatfix.serving.keys (null: nobody administers)", optional=True
    ),
    "auth.predict": Option(bool, "ask for a key to predict, too"),
    "journal_mb": Option(int, "most that the record of answers and feedback keeps, in megabytes (0: no record)", low=0),
    **RUNTIME,
    **REGISTRY,
    "tracking.uri": MLFLOW["tracking.uri"],
    **PATHS,
}

PUBLISH: Schema = {
    "action": Option(str, "what to do", choices=("publish", "list", "show", "verify", "diff", "pull", "derive")),
    "against": Option(str, "diff: the version to compare with", optional=True),
    "to": Option(str, "pull: folder for the pictures, new or empty", optional=True),
    "from": Option(str, "derive: the version to begin with", optional=True),
    "labels": Option(str, "derive: table (CSV) of what to relabel, remove or add", optional=True),
    "shard_megabytes": Option(int, "largest size of a shard", low=1),
    **DATASET,
    **TRAINING_DATA,
    **STORE,
    **PATHS,
}
