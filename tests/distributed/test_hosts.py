"""Hostfiles: nothing but host names passes, all mistakes are named at once, and DeepSpeed reads the
same hosts."""

import pytest

from mats_ds.distributed.hosts import choose_hosts, is_address, is_host, is_port, read_hostfile

NAMES = ["alpha", "beta", "gamma"]


def write(folder, *lines: str):
    path = folder / "hosts"
    path.write_bytes("".join(f"{line}\n" for line in lines).encode())
    return path


def test_names_come_in_the_order_of_the_file(tmp_path):
    lines = ["alpha slots=2", "# spare", "", "beta\tslots=4  # the large one", "  gamma slots=2", "\t#x"]
    assert read_hostfile(write(tmp_path, *lines)) == NAMES
    assert read_hostfile(write(tmp_path, *(f"{line}\r" for line in lines))) == NAMES, "as Windows writes it"
    (tmp_path / "hosts").write_text("alpha slots=2")
    assert read_hostfile(tmp_path / "hosts") == ["alpha"], "no new line at the end"


@pytest.mark.slow
def test_deepspeed_reads_the_same_hosts(tmp_path):
    from deepspeed.launcher.runner import apply_num_nodes_and_gpus, fetch_hostfile, parse_inclusion_exclusion

    path = write(tmp_path, "alpha slots=2", "# spare", "", "beta\tslots=4  # the large one", "gamma slots=2\r")
    assert list(fetch_hostfile(str(path))) == read_hostfile(path)
    for options in ({}, {"include": "gamma:1@alpha"}, {"exclude": "beta"}, {"exclude": "beta:0"}, {"num_nodes": "2"}):
        theirs = parse_inclusion_exclusion(fetch_hostfile(str(path)), options.get("include", ""), options.get("exclude", ""))
        theirs = apply_num_nodes_and_gpus(theirs, int(options.get("num_nodes", -1)), -1)
        assert choose_hosts(NAMES, **options) == list(theirs), options


def test_all_mistakes_are_named_with_their_lines(tmp_path):
    path = write(tmp_path, "alpha slot=2", "beta slots=0", "gamma slots=1", "gamma slots=3")
    with pytest.raises(ValueError) as caught:
        read_hostfile(path)
    assert str(caught.value).splitlines() == [
        f"{path}: line 1: expected NAME slots=GPUS, got 'alpha slot=2'",
        "  line 2: expected NAME slots=GPUS, got 'beta slots=0'",
        "  line 4: gamma is there twice",
    ]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("-oProxyCommand=touch${IFS}pwned slots=1", r"line 2: '-oProxyCommand=touch\$\{IFS\}pwned' .*\.ssh/config"),
        ("user@alpha slots=1", "line 2: 'user@alpha'"),
        ("$(touch) slots=1", r"line 2: '\$\(touch\)'"),
        ("# harmless\r-oProxyCommand=x slots=1", "line 2: a carriage return"),
        ("beta slots=1 # \x1b[2Jx", "control characters"),
        ("be\0ta slots=1", "control characters"),
        ("beta slots=99999999999999999999", "line 2: expected NAME slots=GPUS"),
        ("beta slots=1 $(x)", "line 2: expected NAME slots=GPUS"),
        ("\u00a0beta slots=1", "line 2: "),
        ("beta\u2028gamma slots=1", "line 2: "),
        ("\x1b]0;title\x07 slots", r"line 2: expected NAME slots=GPUS, got '\\x1b"),
    ],
)
def test_what_a_shell_or_deepspeed_would_read_another_way_is_refused(tmp_path, line, words):
    with pytest.raises(ValueError, match=words) as caught:
        read_hostfile(write(tmp_path, "alpha slots=1", line))
    assert not set("\x1b\x07\0") & set(str(caught.value))


def test_a_file_that_is_missing_empty_or_no_text(tmp_path):
    with pytest.raises(ValueError, match="there is no hostfile nowhere"):
        read_hostfile("nowhere")
    with pytest.raises(ValueError, match="names no machine"):
        read_hostfile(write(tmp_path, "# nobody"))
    (tmp_path / "hosts").write_bytes(b"alpha\xff slots=1\n")
    with pytest.raises(ValueError, match="UTF-8"):
        read_hostfile(tmp_path / "hosts")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, NAMES),
        ({"num_nodes": "2"}, ["alpha", "beta"]),
        ({"include": "gamma@alpha:0,1"}, ["alpha", "gamma"]),
        ({"exclude": "alpha"}, ["beta", "gamma"]),
        ({"exclude": "alpha:0"}, NAMES),
        ({"include": "beta@gamma", "num_nodes": "1"}, ["beta"]),
    ],
)
def test_a_part_of_the_file(options, expected):
    assert choose_hosts(NAMES, **options) == expected


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_nodes": "4"}, "names only 3"),
        ({"num_nodes": "all"}, "--num_nodes takes a number from 1 on, got 'all'"),
        ({"include": "delta:0@alpha"}, "delta is not in the hostfile"),
        ({"exclude": "alpha@beta@gamma"}, "leave no machine"),
        ({"include": "alpha:$(x)"}, r"HOST\[:SLOT"),
        ({"include": "*"}, "got '\\*'"),
        ({"include": "alpha:zero"}, "'alpha:zero': expected HOST or HOST:SLOT,SLOT"),
        ({"exclude": "alpha:"}, "'alpha:'"),
    ],
)
def test_a_part_that_is_none(options, words):
    with pytest.raises(ValueError, match=words):
        choose_hosts(NAMES, **options)


def test_names_and_addresses_of_clusters_are_host_names_and_nothing_else_is():
    good = ["alpha", "node_7", "gpu-01.rack2.example.org", "10.0.0.1", "a" * 63, "_x", "7"]
    bad = [
        "-oProxyCommand=x",
        "-lroot",
        "a;touch",
        "$(touch)",
        "`x`",
        "a'b",
        'a"b',
        "a b",
        "a/b",
        "user@alpha",
        "fe80::1",
        "^file",
    ]
    bad += [
        "",
        "alpha[1-3]",
        "ssh:alpha",
        "alpha,beta",
        "alpha.",
        ".alpha",
        "al..pha",
        "alpha-",
        "a" * 64,
        ".".join(["a" * 60] * 5),
    ]
    bad += ["é", "alpha\n", "alpha\n-x", "%h", "*"]
    assert [name for name in good + bad if is_host(name)] == good
    assert is_address("fe80::1") and is_address("node_7") and not is_address("-oProxyCommand=x") and not is_address("a b")
    assert is_port("1") and is_port("65535")
    assert not any(map(is_port, ["0", "65536", "1;touch", "22 -o", "", "-1", "1\n"]))
