from setuptools import setup

setup(
    name="fz",
    version="0.1.0",
    description="FateZero (arXiv 2303.09535): text-driven video editing by fusing attention, in pure PyTorch",
    license="MIT",
    python_requires=">=3.10",
    # kernels/ and weights/ live beside fz/ but import as fz.kernels and fz.weights: transformers looks for a package
    # called `kernels`.
    packages=[
        "fz",
        "fz.model",
        "fz.prompts",
        "fz.settings",
        "fz.clips",
        "fz.memory",
        "fz.metrics",
        "fz.results",
        "fz.tuning",
        "fz.baselines",
        "fz.mini",
        "fz.web",
        "fz.kernels",
        "fz.weights",
    ],
    package_dir={"fz": "fz", "fz.kernels": "kernels", "fz.weights": "weights"},
    package_data={"fz": ["py.typed"], "fz.web": ["*.js", "*.css", "*.svg"], "fz.weights": ["mini/**/*"]},
    entry_points={"console_scripts": ["fz = fz.__main__:main"]},
    install_requires=[
        "torch>=2.6",
        "safetensors>=0.4",
        "transformers>=4.40",  # for trainings of the miniature: CLIP's models
        "tokenizers>=0.19",  # comes with transformers: CLIP's tokenizer
        "huggingface_hub>=0.30",  # comes with transformers: Hub names
        "numpy",
        "av>=17",  # reads and writes mp4, webm and gif; before, colours came out up to 39 levels off
        "pillow",  # images
        "pyyaml",  # comes with transformers: the released configs
        "tqdm",  # comes with transformers: progress bars
        "triton>=3.2; platform_system == 'Linux' and platform_machine == 'x86_64'",
    ],
    extras_require={
        "web": ["gradio>=6"],  # `fz web`: the page to edit with
        "completion": ["argcomplete"],  # flags completed by the shell
        # xdist: the tests on all cores, half the time on two; diffusers and peft: parity tests only
        "test": ["pytest", "pytest-xdist", "ruff", "argcomplete", "diffusers", "peft"],
        "web-test": ["selenium"],  # drives the page in Chromium
    },
)
