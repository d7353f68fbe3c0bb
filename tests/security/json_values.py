"""JSON and YAML as somebody might write it who means harm, or nothing at all: strategies of
hypothesis."""

from hypothesis import strategies as st

NUMBERS = st.one_of(
    st.integers(),
    st.sampled_from([0, -1, 1, 2**31, 2**63, 10**30, 10**400]),
    st.floats(),
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=12))


def values(keys, scalars=SCALARS):
    """Trees of lists and dictionaries whose keys are mostly words that the reader knows."""
    names = st.one_of(st.sampled_from(sorted(keys)), st.text(max_size=6))
    return st.recursive(
        scalars,
        lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(names, inner, max_size=6)),
        max_leaves=12,
    )


def objects(keys, scalars=SCALARS):
    """Dictionaries of `values`, with many of the reader's words."""
    inner = values(keys, scalars)
    return st.dictionaries(st.one_of(st.sampled_from(sorted(keys)), st.text(max_size=6)), inner, max_size=len(keys))


def mutations(whole: bytes):
    """A sound file with some bytes replaced, left out, doubled or cut off."""
    place = st.integers(0, len(whole))

    def mutate(edits):
        data = bytearray(whole)
        for kind, start, new in edits:
            start = min(start, len(data))
            if kind == "replace":
                data[start : start + len(new)] = new
            elif kind == "insert":
                data[start:start] = new
            elif kind == "cut":
                del data[start:]
            else:
                del data[start : start + len(new)]
        return bytes(data)

    kinds = st.sampled_from(["replace", "replace", "insert", "cut", "drop"])
    return st.lists(st.tuples(kinds, place, st.binary(min_size=1, max_size=8)), min_size=1, max_size=4).map(mutate)
