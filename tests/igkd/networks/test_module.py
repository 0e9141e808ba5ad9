"""Networks that a user's function makes: code that runs only if the user himself has named it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from igkd.base.errors import UserError
from igkd.networks import checkpoint, module
from igkd.networks.families import build_named, canonical_name
from igkd.networks.network import NetworkSpec, build, values_a_channel
from igkd.networks.open import open_teacher
from igkd.networks.taps import layers_of
from igkd.networks.trial import check_trainable
from igkd.networks.weights import head
from tests.helpers.modules import FIXED, HEAD, NET, write_module
from tests.helpers.paths import ROOT


def test_a_teacher_by_a_function_with_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = write_module(tmp_path, NET, monkeypatch)
    torch.manual_seed(0)
    theirs = build_named(f"module:{place}:net", 5).eval()
    torch.save({"model": theirs.state_dict()}, tmp_path / "w.pt")
    model, _ = open_teacher(f"module:{place}:net,weights={tmp_path}/w.pt")
    assert (model.spec.image_shape, model.spec.mean, model.spec.std) == ((16, 16), (0.5, 0.4, 0.3), (0.2, 0.2, 0.1))
    assert model.spec.classes == tuple("01234") and model.spec.name == f"module:{place}:net"
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(model.from_normalised(x), theirs(x))
    checkpoint.save(model, tmp_path / "made", {})
    assert checkpoint.load(tmp_path / "made").spec == model.spec


def test_a_function_without_parameters_has_its_own_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = write_module(tmp_path, FIXED, monkeypatch)
    model, _ = open_teacher(f"module:{place}:net")
    assert model.spec.classes == ("x", "y") and model.spec.image_shape == (8, 12)
    with pytest.raises(UserError, match="gives logits of 2 classes, and there are 3: let its function take the number of classes"):
        check_trainable(NetworkSpec(name=f"module:{place}:net", classes=("a", "b", "c"), image_shape=(8, 8)))


RUN = "import sys\nopen({!r}, 'a').write('run')\n"


def test_a_checkpoint_does_not_make_its_code_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proof = tmp_path / "proof"
    place = write_module(tmp_path, RUN.format(str(proof)) + NET, monkeypatch)
    checkpoint.save(build(NetworkSpec(name=f"module:{place}:net", classes=("a", "b"), image_shape=(16, 16)), 0), tmp_path / "c", {})
    assert proof.read_text() == "run"
    for value in ("", "other:net", f"{place}:other", place, f"x{place}:net"):
        monkeypatch.setenv(module.ALLOWED, value)
        monkeypatch.delitem(sys.modules, place, raising=False)
        with pytest.raises(
            UserError, match=f"^module:{place}:net is code, and only a file names it.*{module.ALLOWED}={place}:net in front"
        ):
            open_teacher(str(tmp_path / "c"))
        assert proof.read_text() == "run" and place not in sys.modules
    for value in (f"{place}:net", f"other:net, module:{place}:net"):
        monkeypatch.setenv(module.ALLOWED, value)
        assert open_teacher(str(tmp_path / "c"))[0].spec.classes == ("a", "b")


def test_what_the_user_types_is_allowed_and_inherited_by_child_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = write_module(tmp_path, NET, monkeypatch, ())
    monkeypatch.setattr(sys, "argv", ["job", "--student", f"module:{place}:net", "--teacher=module:a.b:c,weights=w.pth", "xmodule:no:no"])
    assert module.allowed() == {f"{place}:net", "a.b:c"}
    build_named(f"module:{place}:net", 2)
    child = "from igkd.networks import module; print(sorted(module.allowed()))"
    said = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert said.strip() == str(sorted([f"{place}:net", "a.b:c"])) and module.environment() == {module.ALLOWED: f"a.b:c,{place}:net"}


def test_the_current_directory_is_searched(tmp_path: Path) -> None:
    (tmp_path / "mine_here.py").write_text(NET)
    code = "import igkd; from igkd.networks.families import build_named; print(len(build_named('module:mine_here:net', 2)))"
    command = [sys.executable, "-c", f"import sys; sys.path[:] = [p for p in sys.path if p]; sys.path.append({str(ROOT)!r}); {code}"]
    done = subprocess.run([*command, "module:mine_here:net"], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.strip() == "5", done.stderr


SIZED = "input_size, mean, std = 16, (0, 0, 0), (1, 1, 1)\n"
SPOILT = {
    "raises when imported": ("1 / 0", "cannot be imported: ZeroDivisionError: division by zero"),
    "needs what is not there": ("import nothing_of_that_name", "cannot be imported: No module named 'nothing_of_that_name'; install what"),
    "no such function": ("", "has no function net, which module:.*:net names"),
    "no function": ("net = 3", "net in the module .* is no function"),
    "raises": (SIZED + "def net(classes): raise ValueError('no, thanks')", "fails to make a network: ValueError: no, thanks"),
    "no module": (SIZED + "def net(classes): return 3", "gives a int, not an nn.Module"),
    "no size": (HEAD + "def net(classes): return nn.Linear(2, 2)", "does not say how its pictures are prepared"),
    "size of words": (NET + "input_size = 'large'", "its input_size, mean, std, short_side or interpolation is none"),
    "grey": (NET.replace("Conv2d(3,", "Conv2d(1,"), r"takes pictures of 1 channel\(s\), and igkd's have three"),
    "four channels": (NET.replace("Conv2d(3,", "Conv2d(4,"), r"takes pictures of 4 channel\(s\), and igkd's have three"),
    "no logits": (
        NET.replace("nn.AdaptiveAvgPool2d(1), nn.Flatten(), ", "").replace("4, classes", "14, classes"),
        "gives 2x4x14x1000 .* for 2 pictures",
    ),
    "a dictionary": (
        NET + "class D(nn.Module):\n    def forward(self, x): return {'logits': x}\ndef net(classes=2): return D()",
        "gives a dict where logits, a tensor",
    ),
    "numbers of classes": (NET + "def net(classes=2): return nn.Sequential(nn.Flatten(), nn.Threshold(1, 1), M())\nclass M(nn.Module):\n"
                           "    def forward(self, x): return x.argmax(1, keepdim=True)", r"gives 2x1 \(int64\) for 2 pictures"),
    "random": (
        NET + "class D(nn.Module):\n    def forward(self, x): return F.dropout(x)\nold = net\n"
        "def net(classes=2): return nn.Sequential(old(classes), D())",
        "gives two answers for the same pictures in evaluation mode",
    ),
    "a batch norm without statistics": (
        NET.replace("nn.ReLU()", "nn.BatchNorm2d(4, track_running_stats=False)"),
        "answers a picture alone otherwise than beside others, .*batch normalisation without running statistics",
    ),
    "a batch norm that stays in training": (
        NET + "class S(nn.BatchNorm2d):\n    def train(self, mode=True): return super().train(True)\n"
        "def net(classes): return nn.Sequential(S(3), nn.Conv2d(3, classes, 16), nn.Flatten())",
        "answers a picture alone otherwise than beside others",
    ),
    "squeezes a batch of one": (
        NET + "class Q(nn.Module):\n    def forward(self, x): return x.squeeze()\n"
        "def net(classes): return nn.Sequential(nn.Conv2d(3, classes, 16), Q())",
        "answers a picture alone otherwise than beside others",
    ),
    "probabilities": (NET.replace("classes))", "classes), nn.Softmax(1))"), "gives probabilities where logits are needed: leave out"),
    "views of what lies otherwise": (
        NET + "class V(nn.Module):\n    def forward(self, x): return x.view(len(x), -1)\n"
        "def net(classes): return nn.Sequential(nn.Conv2d(3, 4, 3), V(), nn.Linear(4 * 14 * 14, classes))",
        r"cannot take pictures in channels-last memory, .*take \.flatten\(1\) or \.reshape in place of \.view",
    ),
    "lazy": (NET.replace("nn.Linear(4, ", "nn.LazyLinear("), "has lazy layers, which have no weights before the first picture: give"),
    "a state that is no tensor": (
        NET + "class E(nn.Identity):\n    def get_extra_state(self): return {'a': 1}\n    def set_extra_state(self, s): pass\n"
        "old = net\ndef net(classes): return nn.Sequential(old(classes), E())",
        "keeps .*_extra_state.* in its state, which is no tensor",
    ),
    "needs larger pictures": (
        NET.replace("nn.Conv2d(3, 4, 3)", "nn.Conv2d(3, 4, 99)"),
        "cannot take pictures of 16x16 pixels .*--image-size",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", SPOILT)
def test_modules_that_are_of_no_use(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text, words = SPOILT[kind]
    place = write_module(tmp_path, text, monkeypatch)
    with pytest.raises(UserError, match=words) as caught:
        open_teacher(f"module:{place}:net,weights=none,seed=0" if "(classes)" in text and "D()" not in text else f"module:{place}:net")
    assert "\n" not in str(caught.value)


def test_a_module_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(module.ALLOWED, "no_such_place.deep:net")
    with pytest.raises(
        UserError, match="there is no module no_such_place for module:no_such_place.deep:net: it is looked for in the current"
    ):
        open_teacher("module:no_such_place.deep:net")


@pytest.mark.parametrize(
    "name", ["module:", "module:os", "module:os.system", "module:a/b:c", "module:..a:b", "module:a:b:c", "module:a:b\n"]
)
def test_malformed_names(name: str) -> None:
    with pytest.raises(UserError, match=re.escape("names no network; one is module:package.module:function")):
        canonical_name(name)


VALUES = (
    HEAD
    + """
class Deciding(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, classes)
        self.scale = float(torch.linspace(1, 2, 3).sum())
    def forward(self, x):
        x = self.norm(self.conv(x))
        return self.head(x.mean(dim=(2, 3))) * (1 if x.sum().item() > -1e9 else 2)
def net(classes):
    return Deciding(classes)
"""
)


def test_a_network_that_computes_with_values_is_asked_for_its_shapes_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"module:{write_module(tmp_path, VALUES, monkeypatch)}:net"
    spec = NetworkSpec(name=name, classes=("a", "b"), image_shape=(8, 10))
    assert values_a_channel(spec) == 6 * 8
    assert head(name) == {"head.weight": 0, "head.bias": 0} and layers_of(name, 2, (8, 10))["norm"] == (6, 8)
    check_trainable(spec)
