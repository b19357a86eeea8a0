"""What the Python package costs per call, over the C ABI, which costs some 1 µs over the Rust API.

    pip install . && python benches/python.py

| case | what one call is |
|---|---|
| `floor` | `te_execute` by ctypes, of bytes that are made already, and `te_result_free`: the library alone |
| `execute` | `ToolExecutor.execute`, its output looked at |
| `submit` | `ToolExecutor.submit`, and its result by `completions`, 100 calls at a time |
| `threads/N` | `ToolExecutor.execute` by N threads at the same time |
| `asyncio/N` | `AsyncToolExecutor.execute`, N tasks at a time |

`door` is a call of a tool that does not exist, which no other thread takes part in: the time that a
processor spends on it. `read_file` is a call that the embedded sandbox answers: the time until it
is done, per call. Each line is the median of rounds that take turns, and what it is over the floor.
"""

import argparse
import asyncio
import ctypes
import json
import statistics
import threading
import time
from typing import Any, Callable, Dict, List

from tool_executor import AsyncToolExecutor, ToolExecutor
from tool_executor._native import _path

Case = Callable[[int], float]


def door_and_file() -> Dict[str, Any]:
    return {"door": ("nothing", {"command": "true"}), "read_file": ("read_file", {"path": "f"})}


def floor(executor: ToolExecutor, name: str, arguments: Dict[str, Any], clock: Callable[[], float]) -> Case:
    library = ctypes.CDLL(_path())
    execute, free = library.te_execute, library.te_result_free
    text = [ctypes.c_char_p, ctypes.c_size_t]
    execute.argtypes = [ctypes.c_void_p, *text, *text, ctypes.POINTER(ctypes.c_void_p)]
    free.argtypes, free.restype = [ctypes.c_void_p], None
    call = json.dumps({"name": name, "arguments": arguments}).encode()
    size = len(call)
    handle, result = executor._core.handle, ctypes.c_void_p()
    place = ctypes.byref(result)

    def run(calls: int) -> float:
        began = clock()
        for _ in range(calls):
            execute(handle, b"t", 1, call, size, place)
            free(result)
        return clock() - began

    return run


def execute(executor: ToolExecutor, name: str, arguments: Dict[str, Any], clock: Callable[[], float]) -> Case:
    def run(calls: int) -> float:
        began = clock()
        for _ in range(calls):
            executor.execute("t", name, arguments).output
        return clock() - began

    return run


def submit(executor: ToolExecutor, name: str, arguments: Dict[str, Any], clock: Callable[[], float]) -> Case:
    def run(calls: int) -> float:
        began = clock()
        for _ in range(0, calls, 100):
            for _ in range(100):
                executor.submit("t", name, arguments)
            for result in executor.completions():
                result.output
        return clock() - began

    return run


def threads(count: int, clock: Callable[[], float]) -> Callable[..., Case]:
    def case(executor: ToolExecutor, name: str, arguments: Dict[str, Any], _: Any) -> Case:
        def run(calls: int) -> float:
            def work() -> None:
                for _ in range(calls // count):
                    executor.execute("t", name, arguments).output

            running = [threading.Thread(target=work) for _ in range(count)]
            began = clock()
            for thread in running:
                thread.start()
            for thread in running:
                thread.join()
            return clock() - began

        return run

    return case


def tasks(executor: AsyncToolExecutor, loop: asyncio.AbstractEventLoop, count: int, name: str,
          arguments: Dict[str, Any], clock: Callable[[], float]) -> Case:
    async def work(calls: int) -> None:
        for _ in range(calls):
            (await executor.execute("t", name, arguments)).output

    async def all_of_them(calls: int) -> float:
        began = clock()
        await asyncio.gather(*(work(calls // count) for _ in range(count)))
        return clock() - began

    return lambda calls: loop.run_until_complete(all_of_them(calls))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=4000, help="calls of each round")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    loop = asyncio.new_event_loop()
    config: Dict[str, Any] = {"local": {"slots": 2}}
    with ToolExecutor(config) as executor:
        other = AsyncToolExecutor(config)
        loop.run_until_complete(other.start())
        executor.execute("t", "bash", {"command": "echo x > f"})
        loop.run_until_complete(other.execute("t", "bash", {"command": "echo x > f"}))
        for group, (name, arguments) in door_and_file().items():
            # Of several threads the whole process's time counts.
            clock = time.thread_time if group == "door" else time.perf_counter
            whole = time.process_time if group == "door" else time.perf_counter
            cases: Dict[str, Case] = {
                "floor": floor(executor, name, arguments, clock),
                "execute": execute(executor, name, arguments, clock),
                "submit": submit(executor, name, arguments, clock),
            }
            for count in (8, 64):
                cases[f"threads/{count}"] = threads(count, whole)(executor, name, arguments, None)
            for count in (1, 100, 1000):
                cases[f"asyncio/{count}"] = tasks(other, loop, count, name, arguments, clock)
            times: Dict[str, List[float]] = {case: [] for case in cases}
            for round in range(options.rounds + 1):
                for case, run in cases.items():
                    took = run(options.calls) / options.calls * 1e6
                    if round > 0:  # the first one warms up
                        times[case].append(took)
            least = statistics.median(times["floor"])
            for case, of in times.items():
                middle = statistics.median(of)
                print(f"{group + '/' + case:24} {middle:8.1f} µs {middle - least:+8.1f} µs")
        loop.run_until_complete(other.close())
    loop.close()


if __name__ == "__main__":
    main()
