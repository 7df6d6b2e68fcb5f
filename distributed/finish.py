"""The end of a run: its weights in the released format."""

from distributed.diagnose import whole_model
from distributed.export import write_release
from distributed.session import Session
from distributed.trainer import Parts


def export_weights(session: Session, parts: Parts) -> None:
    """Writes RUN/export from the weights of the last step; all ranks call it together."""
    model = whole_model(parts.step, parts.model)
    last = parts.store.last
    assert last is not None, "the last step was saved before the export"
    if session.topology.is_first:
        write_release(model, session.directory.export, checkpoint=last)
