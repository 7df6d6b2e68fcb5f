"""Keys of the tars."""

from hypothesis import given
from hypothesis import strategies as st

from pupujepa.tar_store import tar_key

NAMES = st.lists(st.text("aé%._ 2E", min_size=1), min_size=1, max_size=3).map("/".join)


@given(NAMES, NAMES)
def test_keys_tell_names_apart(one, other):
    """Two files have one key only if they are one file, and no key's last part holds a dot, where a key would end."""
    assert (tar_key(one) == tar_key(other)) == (one == other)
    assert "." not in tar_key(one).rpartition("/")[2]
