"""Package m3d_fast: `kernels/` and `loaders/` are reached through committed symbolic links."""

from setuptools import find_packages, setup

condense = [
    "matplotlib>=3.8",
    "pillow>=10",
    "safetensors>=0.4.3",
    "scikit-learn>=1.4",
    "tensorboard>=2.16",
    "torchvision>=0.26",
    "tqdm>=4.66",
]
# what FFCV 1.0.2 imports; `make setup` installs FFCV without its own list, whose opencv-python
# links to libGL. distutils, which it imports, comes with setuptools from Python 3.12 on
ffcv = ["numba>=0.61", "opencv-python-headless>=4.10", "setuptools>=77", *condense]
dev = [
    "expecttest>=0.2",
    "hypothesis>=6.100",
    "mypy==1.18.2",
    "pytest>=8.2",
    "pytest-benchmark>=5.1",
    "pytest-xdist>=3.6",
    "ruff==0.14.6",
    # its photographs, for images as ImageNet's
    "scikit-image>=0.24",
    # the kernels are tested in its interpreter; torch for CPUs does not bring it
    "triton>=3.6; sys_platform == 'linux' and platform_machine == 'x86_64'",
    "vulture>=2.14",
]

# what benchmarks/bench_mmd.py compares with; what is absent is named and left out
peers = ["geomloss>=0.2.6", "pykeops>=2.2", "torchmetrics>=1.4"]

setup(
    name="m3d_fast",
    version="0.1.0",
    description="Dataset condensation by Maximum Mean Discrepancy (M3D), and its fused MMD op",
    license="MIT",
    author="the m3d_fast authors",
    packages=find_packages(include=["m3d_fast*"]),
    package_data={"m3d_fast": ["py.typed"], "m3d_fast.loaders": ["*.json"]},
    python_requires=">=3.11",
    install_requires=["torch>=2.11", "numpy>=1.26"],
    extras_require={"condense": condense, "ffcv": ffcv, "dev": condense + dev, "peers": peers},
)
