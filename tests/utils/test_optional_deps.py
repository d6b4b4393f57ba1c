import pytest
import torch

from immiscible_diffusion.utils.optional_deps import MissingDependencyError, how_to_install, require_extra


@pytest.mark.parametrize(
    ("module", "package"), [("tyro_", "tyro_"), ("PIL.none", "pillow"), ("sklearn.none", "scikit-learn")]
)
def test_a_missing_package_is_asked_for_by_itself(module, package):
    with pytest.raises(MissingDependencyError, match=rf"what for needs .*run: pip install {package} "):  # noqa: SIM117
        with require_extra("train", "what for"):
            raise ModuleNotFoundError("gone", name=module)


def test_no_advice_replaces_torch_or_names_a_project_of_the_index():
    advice = how_to_install("torch_fidelity", "fid")
    assert advice.count(f"torch=={torch.__version__.partition('+')[0]}") == advice.count("pip install") == 2
    assert "immiscible" not in advice
