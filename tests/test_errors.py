"""What all errors share: one line for people, fields for programs, and pickling between processes."""

import pickle
import re

from raypipe.errors import ConfigError, FingerprintError

NAMES = ("resnet18", "resnet50", "vgg11")


def test_an_error_names_the_value_a_close_choice_and_the_choices() -> None:
    error = ConfigError("Unknown backbone 'resnet5'.", key="backbone.name", value="resnet5", choices=NAMES)
    assert (error.key, error.value, error.choices) == ("backbone.name", "resnet5", NAMES)
    assert "'resnet50'?" in str(error)
    assert str(error).endswith("resnet18, resnet50, vgg11.")


def test_a_long_list_of_choices_is_cut() -> None:
    choices = [f"choice{number:03d}" for number in range(100)]
    error = ConfigError("Unknown.", value="nothing like them", choices=choices)
    assert re.search(r"choice039 \w+ 60 ", str(error))
    assert "choice040" not in str(error)
    assert len(error.choices) == 100


def test_the_remedy_comes_last() -> None:
    assert str(ConfigError("It is wrong.", choices=("a",), remedy="Run raypipe embed.")).endswith(" Run raypipe embed.")


def test_an_error_reaches_another_process_whole() -> None:
    error = FingerprintError("It changed.", key="model.n_layer", value=3, expected=2, choices=("a",), remedy="Go back.")
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - as Ray does between its own processes
    assert type(copy) is FingerprintError
    assert (str(copy), vars(copy)) == (str(error), vars(error))
