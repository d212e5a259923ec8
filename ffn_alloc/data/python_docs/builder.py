"""TFDS builder of the embedded corpus; works without TensorFlow (array_record files)."""

from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from ffn_alloc.data.python_docs import corpus


class PythonDocs(tfds.core.GeneratorBasedBuilder):
    """The standard library's sources and help topics, one document a module or topic."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{type(self).__doc__} Content: {corpus.digest()}.",
            features=tfds.features.FeaturesDict({"text": tfds.features.Text()}),
            homepage="https://docs.python.org/3/library/",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        return {
            "train": self._generate_examples(validation=False),
            "validation": self._generate_examples(validation=True),
        }

    def _generate_examples(self, validation: bool) -> Iterator[tuple[str, dict[str, bytes]]]:
        for name, text in corpus.documents():
            if corpus.is_validation(name) == validation:
                yield name, {"text": text}
