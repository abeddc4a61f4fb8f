"""Options of main.py that contradict each other."""

from typing import Any

from common.config_file import Contradiction


def _is_net(given: dict[str, Any]) -> bool:
    return given.get("model") == "net"


CONTRADICTIONS: list[Contradiction] = [
    (
        ("phantom", "data"),
        lambda given: bool(given.get("phantom")) and "data" in given,
        "--phantom reads data/phantom; leave out --data, or leave out --phantom",
    ),
    (
        ("pretrained",),
        lambda given: _is_net(given) and bool(given.get("pretrained")),
        "--pretrained: `net` has no ImageNet weights; leave it out",
    ),
    (
        ("weights", "pretrained"),
        lambda given: "weights" in given and given.get("pretrained") is False,
        "--weights and --no-pretrained contradict each other; give one of them",
    ),
    (
        ("dropout",),
        lambda given: "dropout" in given and not _is_net(given),
        "--dropout is for `net` only; leave it out, or give --model net",
    ),
    (
        ("freeze_epochs",),
        lambda given: (
            bool(given.get("freeze_epochs"))
            and "weights" not in given
            and (_is_net(given) or given.get("pretrained") is False)
        ),
        "--freeze-epochs: there is no pretrained backbone to freeze; leave it out",
    ),
    (
        ("teacher", "folds"),
        lambda given: "teacher" in given and "folds" in given,
        "--teacher teaches one network; leave out --folds",
    ),
    (
        ("teacher", "split_seed", "split_by"),
        lambda given: (
            "teacher" in given and ("split_seed" in given or given.get("split_by") == "image")
        ),
        "--teacher needs the split of the manifest; leave out --split-seed and --split-by",
    ),
    (
        ("teacher_weight",),
        lambda given: "teacher_weight" in given and "teacher" not in given,
        "--teacher-weight is for --teacher; leave it out",
    ),
    (
        ("layer_decay",),
        lambda given: (
            given.get("layer_decay", 1.0) < 1
            and "weights" not in given
            and (_is_net(given) or given.get("pretrained") is False)
        ),
        "--layer-decay: there is no pretrained backbone; leave it out",
    ),
    (
        ("keep_test",),
        lambda given: bool(given.get("keep_test")) and "folds" not in given,
        "--keep-test is for --folds: other runs always keep it; leave it out",
    ),
    (
        ("mixup", "cutmix"),
        lambda given: bool(given.get("mixup")) and bool(given.get("cutmix")),
        "--mixup and --cutmix cannot be combined; give one of them",
    ),
]
