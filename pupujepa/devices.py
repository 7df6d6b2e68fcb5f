"""The device that a user names, checked before anything is moved there."""

import torch

from pupujepa.errors import UserError


def usable_device(name: str | torch.device) -> torch.device:
    """Returns a device on which a tensor can be made, such as cpu, cuda, cuda:1 or mps.

    Raises:
        UserError: an unknown name, or a device that this machine or this build of torch does not have.
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(
            f"device {str(name)!r} cannot be used here ({reason}); choose cpu, or cuda or mps where there is one"
        ) from error
    return device
