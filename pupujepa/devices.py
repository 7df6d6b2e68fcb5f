"""Devices by name, checked before a tensor is moved there."""

import torch

from pupujepa.errors import UserError


def usable_device(name: str | torch.device) -> torch.device:
    """Returns the device of a name such as cpu, cuda, cuda:1 or mps.

    Raises:
        UserError: an unknown name, or a device that this machine or build of torch lacks.
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)  # torch.device alone accepts devices that do not exist
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(
            f"device {str(name)!r} cannot be used here ({reason}); choose cpu, or cuda or mps where there is one"
        ) from error
    return device
