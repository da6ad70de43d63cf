"""ImageNet's evaluation, on a miniature in its own layout: two real photographs, real weights, no training."""

from __future__ import annotations

import pytest
from PIL import Image
from rich.console import Console
from sklearn.datasets import load_sample_image

from regraft import config, running, sweep
from regraft.errors import UserError
from regraft.graft import Run
from regraft.report.tables import result

PHOTOS = {"n03877845": "china.jpg", "n11939491": "flower.jpg"}  # a palace, a daisy


@pytest.fixture
def miniature(tmp_path):
    """PATH/val/<wnid>/*.JPEG with a photograph of each of two classes."""
    for wnid, photo in PHOTOS.items():
        folder = tmp_path / "ILSVRC2012" / "val" / wnid
        folder.mkdir(parents=True)
        Image.fromarray(load_sample_image(photo)).save(folder / "ILSVRC2012_val_00000001.JPEG", quality=95)
    return tmp_path / "ILSVRC2012"


def evaluated(miniature, folder, *words):
    given = ["experiment=imagenet", "plots=false", f"dataset.path={miniature}", "hydra.mode=RUN", f"hydra.run.dir={folder}", *words]
    [planned] = sweep.plan(config.Composer().jobs(given, multirun=False))
    sweep.begin(planned, "a test", {"git": None, "packages": {}, "machine": {}})
    running.execute([planned.folder], lambda what: None)
    return Run(planned.folder.path)


def shown(run):
    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(result(run.folder))
    return console.export_text()


def test_the_net_knows_the_photographs_and_the_table_says_what_is_missing(miniature, tmp_path):
    run = evaluated(miniature, tmp_path / "run", "model=efficientnet_lite")
    assert len(run.classes) == 1000
    assert run.record["data"]["sizes"] == {"train": 0, "val": 0, "test": 2}
    assert run.metrics["test/accuracy"] == run.metrics["test/top5_accuracy"] == 1
    remark = " ".join(run.record["warnings"])
    assert "2 of 1,000 classes" in remark
    assert "2 of 50,000" in remark
    assert "998" in remark
    assert "n01440764" in remark, "what is missing is named"
    assert "reported" not in shown(run), "nobody's figure stands beside a net that the talk does not tell of"


def test_a_net_of_the_talk_stands_beside_its_reported_error(miniature, tmp_path):
    import torch
    from torchvision.models import resnet18

    torch.manual_seed(0)
    torch.save(resnet18().state_dict(), tmp_path / "resnet18.pth")
    run = evaluated(miniature, tmp_path / "run", "model=resnet", f"model.weights={tmp_path / 'resnet18.pth'}")
    assert run.record["reported"]["top5_error"] == pytest.approx(0.037, abs=0.002)
    assert f"top-5 error {1 - run.metrics['test/top5_accuracy']:.1%}, reported 3." in shown(run)


def test_random_weights_have_no_classifier_to_keep(miniature, tmp_path):
    with pytest.raises(UserError, match="keeps the classifier that the weights bring"):
        evaluated(miniature, tmp_path / "run", "model=resnet", "model.weights=none")
