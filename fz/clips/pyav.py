"""PyAV where it is installed. Video files need it; models, kernels, and folders of pictures do not."""

from fz.errors import FzError

try:
    import av
except ImportError:
    av = None


def need_av(path: object) -> None:
    """Raises FzError where PyAV is not installed. path: the file that needs it."""
    if av is None:
        raise FzError(
            f"video: {path} needs PyAV, which is not installed. Install it (pip install av), or use a folder of "
            "pictures"
        )
