"""Words that accompany an exported set: how to train on it without this package, a data card."""

from pathlib import Path

from .content import Content

# how the images and labels of a format are read, by others' packages alone
READING = {
    "imagefolder": (
        "import torch, torchvision",
        "data = torchvision.datasets.ImageFolder({path!r}, torchvision.transforms.ToTensor())",
        "images, labels = torch.stack([image for image, _ in data]), torch.tensor(data.targets)",
    ),
    "npz": (
        "import numpy, torch",
        "data = numpy.load({path!r})",
        "images, labels = torch.from_numpy(data['images']), torch.from_numpy(data['labels'])",
    ),
    "beton": (
        "import torch; from ffcv.loader import Loader; from ffcv.transforms import ToTensor",
        "from ffcv.fields.decoders import IntDecoder, SimpleRGBImageDecoder",
        "pipelines = {{'image': [SimpleRGBImageDecoder(), ToTensor()],"
        " 'label': [IntDecoder(), ToTensor()]}}",
        "loader = Loader({path!r}, {count}, 1, pipelines=pipelines)",
        "((images, labels),) = ((x.permute(0, 3, 1, 2) / 255, y[:, 0]) for x, y in loader)",
    ),
    "hf": (
        "import torch, datasets, numpy",
        "data = datasets.load_dataset({path!r}, split='train')",
        "images = torch.stack([torch.from_numpy(numpy.array(x)) / 255 for x in data['image']])",
        "images = {arrange}; labels = torch.tensor(data['label'])",
    ),
    "dd-ranking": (
        "import torch",
        "folder = {path!r}",
        "images, labels = torch.load(folder + '/images.pt'), torch.load(folder + '/labels.pt')",
    ),
}

# then a network that learns them, the same for all
TRAINING = (
    "network = torch.nn.Sequential(torch.nn.Conv2d(images.shape[1], 128, 3), torch.nn.ReLU(),"
    " torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(2048, {classes}))",
    "optimizer = torch.optim.Adam(network.parameters())",
    "for rows in (r for _ in range(100) for r in torch.randperm(len(images)).split(64)):",
    "    loss = torch.nn.functional.cross_entropy(network(images[rows]), labels[rows])",
    "    optimizer.zero_grad(); loss.backward(); optimizer.step()",
)


def training_lines(content: Content, to: str, path: str | Path) -> str:
    """Python that reads an exported set and trains a network on it, without this package.

    Args:
        content: what was exported.
        to: the format.
        path: of the files.
    """
    grey = content.images.shape[1] == 1
    fields = {
        "path": str(path),
        "count": len(content.images),
        "classes": len(content.metadata["classes"]),
        "arrange": "images[:, None]" if grey else "images.permute(0, 3, 1, 2)",
    }
    return "\n".join((*READING[to], *TRAINING)).format(**fields)


def write_card(content: Content, folder: Path) -> None:
    """Write ``README.md``, the data card of Hugging Face's hub."""
    known = content.metadata
    origin, method = known.get("dataset", "unknown data"), known.get("method", "an unknown method")
    side, count = content.images.shape[-1], len(content.images)
    lines = ["---", "pretty_name: " + _quoted(f"{origin}, condensed by {method}")]
    lines += ["task_categories:", "- image-classification"]
    lines += ["tags:", "- dataset-condensation", "- dataset-distillation"]
    lines += ["configs:", "- config_name: default", "  data_files:"]
    lines += ["  - split: train", "    path: data/train-*", "dataset_info:", "  features:"]
    lines += ["  - name: image", "    dtype: image", "  - name: label", "    dtype:"]
    lines += ["      class_label:", "        names:"]
    lines += [f"          '{n}': {_quoted(name)}" for n, name in enumerate(known["classes"])]
    lines += ["  splits:", "  - name: train", f"    num_examples: {count}", "---", ""]
    lines += [f"# {origin}, condensed by {method}", ""]
    tiles = known["factor"] ** 2
    stored = (
        f", each of {tiles} tiles that are enlarged to images of their own" if tiles > 1 else ""
    )
    lines += [
        f"{count} synthetic images of {side} x {side} pixels{stored}, "
        f"{count // len(known['classes'])} for each of {len(known['classes'])} classes, made by "
        f"m3d_fast to train classifiers on in place of the real training images. Pixels are "
        f"rounded to 8 bits.",
        "",
        *(f"- {name}: {value}" for name, value in known.items() if name != "classes"),
        "",
        "Before a network, pixels in [0, 1] are normalised by `mean` and `std`.",
        "",
    ]
    if tiles == 1:
        lines += ["To train on it:", "", "```python"]
        lines += [training_lines(content, "hf", "PATH OR REPOSITORY"), "```", ""]
    (folder / "README.md").write_text("\n".join(lines), encoding="utf-8")


def _quoted(text: str) -> str:
    """A string of YAML."""
    return "'" + text.replace("'", "''") + "'"
