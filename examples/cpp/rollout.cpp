// Rollouts through the C++ header: a completion queue, and a tool that is a lambda.
//
//     c++ -std=c++17 examples/cpp/rollout.cpp -I include -L target/release -ltool_executor -o rollout

#include <cstdio>
#include <string>
#include <vector>

#include "tool_executor.hpp"

using namespace tool_executor;

static int failed(const char *doing, const Status &status) {
    std::fprintf(stderr, "%s: %s: %s\n", doing, te_status_name(status.code), status.message);
    return 1;
}

int main() {
    Tools tools;
    Status status = tools.add(R"({"name": "reward", "description": "Scores an answer."})",
                              [](const Call &call, Reply reply) {
                                  (void)call.arguments;
                                  (void)reply.ok("1.0");
                              });
    if (!status) return failed("the tool", status);

    Executor executor;
    status = executor.start(R"({"local": {"slots": 4}})", tools);
    if (!status) return failed("starting", status);

    Result result;
    status = executor.execute(
        "agent-0", R"({"name": "bash", "arguments": {"command": "echo hello > f; cat f"}})", result);
    if (!status) return failed("a call", status);
    if (result.output() != "hello") return std::puts(std::string(result.error()).c_str()), 1;
    Buffer file;
    status = executor.read("agent-0", R"({"path": "f"})", file);
    if (!status || file.view() != "hello\n") return failed("an artifact", status);

    Queue queue;
    status = executor.queue(100, queue);
    if (!status) return failed("the queue", status);
    for (uint64_t agent = 1; agent <= 100; agent++) {
        const char *call = agent % 2 ? R"({"name": "bash", "arguments": {"command": "pwd"}})"
                                     : R"({"name": "reward"})";
        status = queue.submit("agent-" + std::to_string(agent), call, agent);
        if (!status) return failed("submitting", status);
    }
    size_t good = 0;
    while (queue.outstanding() > 0) {
        std::vector<Result> results;
        status = queue.next_many(16, 60.0, results);
        if (!status) return failed("fetching", status);
        for (const Result &each : results) {
            good += each->success;
            status = executor.submit_release(each.trajectory(), true);
            if (!status) return failed("releasing", status);
        }
    }
    status = executor.close();
    if (!status) return failed("closing", status);
    if (executor.execute("agent-0", R"({"name": "reward"})", result) != TE_CLOSED) return 1;
    std::printf("%zu of 100 calls were good\n", good);
    return good == 100 ? 0 : 1;
}
