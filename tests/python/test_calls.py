"""Calls and their results, by threads."""

import io
import pickle
import select
import tarfile
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, List

import pytest
from conftest import Gate, echo

from tool_executor import (
    ArtifactError,
    ArtifactNotFoundError,
    ClosedError,
    Outcome,
    QueueFullError,
    ToolCall,
    ToolExecutor,
    WaitTimeoutError,
)


def test_a_trajectorys_calls_share_a_workspace_until_its_release(executor: ToolExecutor) -> None:
    executor.execute("a", "bash", {"command": "echo one > file"})
    assert executor.execute("a", "bash", {"command": "cat file"}).output == "one"
    assert executor.execute("b", "bash", {"command": "cat file"}).outcome is Outcome.NON_ZERO_EXIT
    executor.release("a")
    assert executor.execute("a", "bash", {"command": "cat file"}).outcome == "non_zero_exit"


def test_what_a_result_says(executor: ToolExecutor) -> None:
    result = executor.execute("t", "bash", {"command": "echo o; echo e >&2; exit 3"}, uniq_id="u")
    assert (result.trajectory_id, result.uniq_id) == ("t", "u")
    assert result.outcome is Outcome.NON_ZERO_EXIT and not result.success
    assert result.output.startswith("o") and "[stderr]" in result.output and result.error
    assert result.metadata["exit_code"] == 3
    assert result.may_have_executed and result.model_attributable
    assert result.exec_s > 0 and result.queue_s >= 0 and result.slot_s >= 0
    assert result.tag is None
    assert str(result.outcome) == f"{result.outcome}" == "non_zero_exit"


def test_a_result_is_plain_data(door: ToolExecutor) -> None:
    result = door.execute("t", "echo", {"text": "é\0\u2028"}, uniq_id="u")
    again = pickle.loads(pickle.dumps(result))
    assert again == result and again.outcome is Outcome.OK
    assert again.message("openai") == result.message("openai")
    assert result.message() == {"role": "tool", "tool_call_id": "u", "content": "é\0\u2028"}
    other = replace(result, output="changed", tag=object())
    assert other.message("anthropic")["content"][0]["content"] == "changed"
    assert "<tool_response>" in result.xml and result != other
    with pytest.raises(ValueError, match="openai"):
        result.message("nonsense")


def test_a_time_limit_is_the_calls(executor: ToolExecutor) -> None:
    result = executor.execute("t", "bash", {"command": "sleep 100"}, timeout=1)
    assert result.outcome is Outcome.TIMEOUT and result.exec_s < 30


def test_calls_of_openais_and_anthropics_api_are_taken_as_they_are(door: ToolExecutor) -> None:
    function = {"name": "echo", "arguments": '{"text": "x"}'}
    openai: Dict[str, Any] = {"id": "c", "type": "function", "function": function}
    anthropic = {"type": "tool_use", "id": "c", "name": "echo", "input": {"text": "x"}}
    for call in (openai, anthropic, ToolCall("echo", {"text": "x"}, uniq_id="c")):
        result = door.execute_call("t", call)
        assert (result.output, result.uniq_id) == ("x", "c")

    class Message:
        """An object of a client's."""

        def model_dump(self, **_: Any) -> Dict[str, Any]:
            return {"role": "assistant", "content": None, "tool_calls": [openai]}

    for message in (Message(), Message().model_dump()):
        (call,) = door.parse_message(message)
        assert isinstance(call, ToolCall) and call.arguments == {"text": "x"}
        assert door.execute_call("t", call).message("openai")["tool_call_id"] == "c"


def test_what_a_model_wrote_is_parsed(door: ToolExecutor) -> None:
    text = 'a <tool_call>{"name": "echo", "arguments": {"text": "1"}}</tool_call> <tool_call>{no</tool_call>'
    good, bad = door.parse(text)
    assert door.execute_call("t", good).output == "1"
    result = door.execute_call("t", bad)
    assert result.outcome is Outcome.INVALID_CALL and result.model_attributable
    assert not result.may_have_executed
    assert door.parse('[TOOL_CALLS]echo[ARGS]{"text": "2"}', "mistral")[0].arguments == {"text": "2"}
    with pytest.raises(ValueError, match="hermes"):
        door.parse(text, "nonsense")


def test_completions_come_with_their_tags(door: ToolExecutor, gate: Gate) -> None:
    tags: List[Any] = [object() for _ in range(300)]
    for number, tag in enumerate(tags):
        door.submit(f"t{number}", "echo", {"text": number}, tag=tag)
    assert door.outstanding == 300
    seen = {id(result.tag): result.output for result in door.completions(timeout=60)}
    assert seen == {id(tag): str(number) for number, tag in enumerate(tags)}
    assert door.outstanding == 0 and door.next_completion() is None

    door.submit("a", "wait", tag="waits")
    gate.has_started()
    with pytest.raises(WaitTimeoutError, match="0.01 s"):
        door.next_completion(timeout=0.01)
    with pytest.raises(TimeoutError):
        next(door.completions(timeout=0))
    gate.go_on.set()
    result = door.next_completion(timeout=60)
    assert result is not None and (result.tag, result.output) == ("waits", "went on")


def test_the_descriptor_is_readable_while_completions_wait(door: ToolExecutor) -> None:
    assert not select.select([door], [], [], 0)[0]
    for number in range(100):
        door.submit(f"t{number}", "echo")
    for _ in range(100):
        assert select.select([door], [], [], 60)[0]
        assert door.next_completion(timeout=60) is not None
    assert not select.select([door], [], [], 0)[0]


def test_one_call_is_cancelled_and_no_other(door: ToolExecutor, gate: Gate) -> None:
    first = door.submit("t", "wait", tag=1)
    door.submit("t", "wait", tag=2)
    gate.has_started()
    first.cancel()
    result = door.next_completion(timeout=60)
    assert result is not None and (result.tag, result.outcome) == (1, Outcome.CANCELLED)
    gate.has_started()
    gate.go_on.set()
    result = door.next_completion(timeout=60)
    assert result is not None and (result.tag, result.outcome) == (2, Outcome.OK)
    first.cancel()


def test_all_of_a_trajectory_is_cancelled(door: ToolExecutor, gate: Gate) -> None:
    for tag in range(3):
        door.submit("t", "wait", tag=tag)
    gate.has_started()
    door.cancel("t")
    assert {result.outcome for result in door.completions(timeout=60)} == {Outcome.CANCELLED}


def test_a_submit_that_finds_no_room_says_so_and_an_execute_waits_for_it(gate: Gate) -> None:
    with ToolExecutor(tools=[echo, gate.wait], completions_capacity=2, queue_capacity=4) as executor:
        executor.submit("t", "wait")
        executor.submit("t", "echo")
        with pytest.raises(QueueFullError) as refused:
            executor.submit("t", "echo")
        assert refused.value.status == "TE_COMPLETIONS_FULL" and executor.outstanding == 2
        gate.has_started()
        results: List[Any] = []

        def run(number: int) -> None:
            results.append(executor.execute("t", "echo", {"text": number}))

        threads = [threading.Thread(target=run, args=[number]) for number in range(8)]
        for thread in threads:
            thread.start()
        gate.go_on.set()
        for thread in threads:
            thread.join(60)
        assert sorted(result.output for result in results) == [str(number) for number in range(8)]
        assert len(list(executor.completions(timeout=60))) == 2


def test_sixty_four_threads_share_it(executor: ToolExecutor) -> None:
    wrong: List[Any] = []

    def run(number: int) -> None:
        with executor.trajectory() as trajectory:
            for step in range(3):
                result = trajectory.execute("bash", {"command": f"echo {number}.{step} >> f; tail -n 1 f"})
                if result.output != f"{number}.{step}":
                    wrong.append(result)

    threads = [threading.Thread(target=run, args=[number]) for number in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    assert not wrong


def test_a_trajectory_is_released_at_the_end_of_with(executor: ToolExecutor) -> None:
    with executor.trajectory("t") as trajectory:
        trajectory.execute("bash", {"command": "echo x > f"})
        assert trajectory.read_artifact("f") == b"x\n"
    assert executor.execute("t", "bash", {"command": "ls"}).output == ""
    with pytest.raises(KeyError), executor.trajectory() as trajectory:
        executor.submit(trajectory.id, "bash", {"command": "sleep 100"})
        raise KeyError
    result = executor.next_completion(timeout=60)
    assert result is not None and result.outcome is Outcome.CANCELLED


def test_files_of_a_workspace_are_read(executor: ToolExecutor, tmp_path: Path) -> None:
    executor.execute("t", "bash", {"command": "mkdir d; printf 0123456789 > d/f"})
    part = executor.read_artifact("t", "d/f", offset=2, max_bytes=3, sha256=True)
    assert (part.content, part.file_size, part.truncated) == (b"234", 10, True)
    assert part.sha256 and part.file_sha256 is None
    entries = executor.list_artifacts("t", recursive=True).entries
    assert sorted((entry.path, entry.is_dir) for entry in entries) == [("d", True), ("d/f", False)]
    archive = executor.archive_artifacts("t")
    assert archive.content[:2] == b"\x1f\x8b" and archive.info.entry_count >= 1
    assert executor.copy_artifact("t", "d/f", tmp_path / "copy") == 10
    assert (tmp_path / "copy").read_bytes() == b"0123456789"
    with pytest.raises(ArtifactNotFoundError):
        executor.read_artifact("t", "nothing")
    with pytest.raises(ArtifactError) as error:
        executor.read_artifact("unknown", "f")
    assert error.value.status == "TE_NO_SLOT"


def test_files_go_in_and_out(executor: ToolExecutor, tmp_path: Path) -> None:
    def run(command: str) -> str:
        result = executor.execute("p", "bash", {"command": command})
        assert result.success, result
        return result.output

    # The trajectory begins with it.
    put = executor.put("p", "/srv/task/run", b"#!/bin/sh\necho ran\n", mode=0o755)
    assert (put.path, put.bytes, put.entry_count) == ("/srv/task/run", 19, 1)
    assert run("/srv/task/run") == "ran"
    big = bytes(range(256)) * 10_000
    (tmp_path / "tree" / "d").mkdir(parents=True)
    (tmp_path / "tree" / "d" / "big").write_bytes(big)
    (tmp_path / "tree" / "link").symlink_to("d/big")
    (tmp_path / "script").write_text("echo hello")
    (tmp_path / "script").chmod(0o700)
    assert executor.put_tree("p", "tree", tmp_path / "tree").entry_count == 3
    executor.put("p", "big", io.BytesIO(big))
    assert run("cmp big tree/link && echo same") == "same"
    executor.put("p", "script", tmp_path / "script")
    assert run("stat -c %a script; ./script") == "700\nhello"
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        tar.add(tmp_path / "script", "in/tar")
    assert executor.put_tar("p", "/tmp/unpacked", archive.getvalue()).entry_count == 1
    assert run("cat /tmp/unpacked/in/tar") == "echo hello"
    out = io.BytesIO()
    assert executor.get("p", "/srv/task/run", out) == 19 == len(out.getvalue())
    assert executor.get("p", "big", tmp_path / "out") == len(big)
    assert (tmp_path / "out").read_bytes() == big


def test_what_cannot_be_put_says_why(executor: ToolExecutor, tmp_path: Path) -> None:
    class Failing(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:
            raise ZeroDivisionError("expected by this test")

    class Full(io.RawIOBase):
        def write(self, piece: Any) -> int:
            raise OverflowError("expected by this test")

    with pytest.raises(ZeroDivisionError):
        executor.put("q", "f", Failing())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="gives str"):
        executor.put("q", "f", io.StringIO("text"))  # type: ignore[arg-type]
    text: Any = "text"
    with pytest.raises(TypeError, match="text.encode"):
        executor.put("q", "f", text)
    with pytest.raises(FileNotFoundError):
        executor.put("q", "f", tmp_path / "nothing")
    with pytest.raises(ArtifactError) as raised:
        executor.put("q", "/proc/f", b"")
    assert raised.value.status == "TE_REFUSED"
    with pytest.raises(ArtifactError) as raised:
        executor.put_tar("q", ".", b"no tar")
    assert raised.value.status == "TE_BAD_ARCHIVE"
    with pytest.raises(ArtifactError) as raised:
        executor.put_tree("q", ".", tmp_path / "nothing")
    assert raised.value.status == "TE_IO"
    executor.put("q", "f", b"x" * 1_000_000)
    with pytest.raises(OverflowError):
        executor.get("q", "f", Full())  # type: ignore[arg-type]
    assert executor.execute("q", "bash", {"command": "ls"}).output == "f"


def test_closing_gives_every_call_its_result(gate: Gate) -> None:
    executor = ToolExecutor(tools=[echo, gate.wait])
    for tag in range(5):
        executor.submit("t", "wait", tag=tag)
    gate.has_started()
    report = executor.close(timeout=0)
    assert (report.cancelled, report.all_threads_ended) == (5, True)
    outcomes = [result.outcome for result in executor.completions(timeout=60)]
    assert len(outcomes) == 5 and set(outcomes) <= {Outcome.CANCELLED, Outcome.NEVER_RAN}
    assert executor.closed and executor.close() == report
    assert executor.stats()["total_requests"] == 5
    for use in (
        lambda: executor.execute("t", "echo"),
        lambda: executor.submit("t", "echo"),
        lambda: executor.release("t"),
        lambda: executor.release("t", wait=False),
        lambda: executor.read_artifact("t", "f"),
        executor.__enter__,
    ):
        with pytest.raises(ClosedError):
            use()


def test_two_executors_know_nothing_of_each_other(executor: ToolExecutor) -> None:
    with ToolExecutor({"local": {"slots": 1}}) as other:
        other.execute("t", "bash", {"command": "echo other > f"})
        assert executor.execute("t", "bash", {"command": "cat f"}).outcome is Outcome.NON_ZERO_EXIT
        assert other.execute("t", "bash", {"command": "cat f"}).output == "other"
        assert executor.execute("t", "echo", {"text": "1"}).success
        assert other.execute("t", "echo").outcome is Outcome.UNKNOWN_TOOL
