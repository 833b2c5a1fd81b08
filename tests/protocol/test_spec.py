"""SPEC.md against the code: its tables are what runs."""

import re
from pathlib import Path

import make_vectors
import pytest

import p2pfed.protocol
from p2pfed.daemon import delta_exchange, links
from p2pfed.protocol import (
    certificates,
    digests,
    envelope,
    exchange,
    federation,
    header,
    limits,
    liveness,
    messages,
    probe_answers,
)
from p2pfed.protocol.canonical import unpack
from p2pfed.topology import topology
from p2pfed.training import schema

SPEC = (Path(p2pfed.protocol.__file__).parent / "SPEC.md").read_text(encoding="utf-8")


def table(heading: str) -> list[list[str]]:
    """The rows of the section's first table, without its head."""
    section = SPEC.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@pytest.mark.parametrize("row", table("Limits"), ids=lambda row: row[0])
def test_every_limit_is_the_one_in_force(row: list[str]) -> None:
    assert getattr(limits, row[0].strip("`")) == int(row[1])


def test_no_limit_of_the_wire_is_left_out() -> None:
    named = {row[0].strip("`") for row in table("Limits")}
    in_force = {name for name in vars(limits) if name.isupper() and name.startswith("MAX_")}
    assert in_force <= named


@pytest.mark.parametrize("row", table("Timers"), ids=lambda row: row[0])
def test_every_timer_is_the_one_in_force(row: list[str]) -> None:
    name = row[0].strip("`")
    homes = (links, delta_exchange, exchange, liveness, probe_answers)
    values = {getattr(module, name) for module in homes if hasattr(module, name)}
    assert values == {float(row[1])}


def test_the_number_of_unverified_chunks_is_the_one_in_force() -> None:
    assert f"`CHUNKS_IN_FLIGHT` is {delta_exchange.CHUNKS_IN_FLIGHT}." in SPEC


def test_the_number_of_helpers_is_the_one_in_force() -> None:
    assert f"`HELPERS` is {liveness.HELPERS}." in SPEC


def test_every_domain_string_is_the_one_in_force() -> None:
    written = {
        text.replace("\\0", "\0").encode()
        for text in re.findall(r"^\| `(p2pfed/1 [^`]+)` \|", SPEC, re.MULTILINE)
    }
    assert written == {
        *(kind.signing_domain for kind in header.Kind),
        header.DIGEST_DOMAIN,
        envelope.CONTEXT_DOMAIN,
        envelope.COMMITMENT_DOMAIN,
        envelope.WRAP_DOMAIN,
        certificates.CERTIFICATE_DOMAIN,
        certificates.ADDRESS_DOMAIN,
        federation.FEDERATION_DOMAIN,
        topology.DIGEST_DOMAIN,
        schema.SCHEMA_CONTEXT,
        digests.VECTOR_CONTEXT.encode(),
        envelope.CHUNK_CONTEXT.encode(),
        envelope.ROOT_CONTEXT.encode(),
    }


def test_no_domain_string_is_the_beginning_of_another() -> None:
    signed_or_hashed = [
        text.replace("\\0", "\0")
        for text in re.findall(r"^\| `(p2pfed/1 [^`]+)` \| (?!BLAKE3)", SPEC, re.MULTILINE)
    ]
    for one in signed_or_hashed:
        assert [other for other in signed_or_hashed if other.startswith(one)] == [one]


def test_every_message_has_the_code_that_is_written() -> None:
    written = {int(row[0]): row[1] for row in table("Messages")}
    made = {}
    for message in make_vectors.sample_messages():
        body = messages.encode_message(message)[messages.LENGTH_PREFIX.size :]
        made[unpack(body, max_bytes=limits.MAX_MESSAGE_BYTES)[0]] = type(message).__name__
    assert made == written


def test_every_refusal_and_answer_code_is_written() -> None:
    for code in [*messages.RefusalCode, *messages.AnswerCode]:
        assert f"`{code.value}`" in SPEC
