/* A simulator with one thread: an event loop around poll(2) that drives 1,000 trajectories, with a
 * tool of its own that answers later, and a timer beside the completions.
 *
 *     cc -std=c99 examples/c/simulator.c -I include -L target/release -ltool_executor -o simulator
 */
#define _POSIX_C_SOURCE 200809L

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tool_executor.h>
#include <unistd.h>

enum { TRAJECTORIES = 1000, STEPS = 3, BATCH = 64 };

static const char *const CALLS[STEPS] = {
    "{\"name\": \"write_file\", \"arguments\": {\"path\": \"n\", \"content\": \"41\"}}",
    "{\"name\": \"bash\", \"arguments\": {\"command\": \"echo $(($(cat n) + 1))\"}}",
    "{\"name\": \"reward\", \"arguments\": {\"answer\": \"42\"}}",
};

static te_executor *executor;
static te_queue *queue;
static int wake[2]; /* the tool's calls come through this pipe */
static int steps[TRAJECTORIES];
static double total_reward;

static void check(te_status status, const char *doing) {
    if (status == TE_OK) return;
    fprintf(stderr, "%s: %s: %s\n", doing, te_status_name(status), te_last_error());
    exit(1);
}

/* The tool "reward": it hands its reply to the loop, which answers. A reply is a pointer, and a
 * pipe takes one whole. */
static int32_t reward(void *user, const te_tool_call *call, te_tool_reply *reply) {
    (void)user, (void)call;
    return write(wake[1], &reply, sizeof reply) == (ssize_t)sizeof reply ? 0 : 1;
}

static void submit(uint64_t trajectory) {
    char name[32];
    const char *call = CALLS[steps[trajectory]];
    snprintf(name, sizeof name, "agent-%llu", (unsigned long long)trajectory);
    check(te_submit(queue, TE_STR(name), TE_STR(call), trajectory, NULL), "submitting");
}

/* One call has ended: the trajectory's next one, or its end. */
static int finished(const te_result *result) {
    if (!result->model_attributable) {
        fprintf(stderr, "%.*s: %s: %.*s\n", (int)result->trajectory_len, result->trajectory,
                te_outcome_name(result->outcome), (int)result->error_len, result->error);
        exit(1);
    }
    if (result->success && ++steps[result->tag] < STEPS) {
        submit(result->tag);
        return 0;
    }
    if (steps[result->tag] == STEPS && result->output_len == 3 && !memcmp(result->output, "1.0", 3))
        total_reward += 1.0;
    check(te_submit_release(executor, result->trajectory, result->trajectory_len, 1), "releasing");
    return 1;
}

int main(void) {
    te_tools *tools;
    te_result *results[BATCH];
    te_tool_reply *reply;
    size_t count;
    int done = 0, ticks = 0, fd;

    if (pipe(wake) != 0) return perror("pipe"), 1;
    check(te_tools_new(&tools), "tools");
    check(te_tools_add(tools,
                       TE_STR("{\"name\": \"reward\", \"parameters\": {\"answer\": {\"type\": "
                              "\"string\"}}, \"required\": [\"answer\"]}"),
                       reward, NULL, NULL),
          "the tool");
    check(te_executor_new(TE_STR("{\"local\": {\"slots\": 16}}"), tools, &executor), "starting");
    te_tools_free(tools);
    check(te_queue_new(executor, TRAJECTORIES, &queue), "the queue");
    check(te_queue_fd(queue, &fd), "its file descriptor");

    for (uint64_t trajectory = 0; trajectory < TRAJECTORIES; trajectory++) submit(trajectory);
    while (done < TRAJECTORIES) {
        struct pollfd fds[2] = {{fd, POLLIN, 0}, {wake[0], POLLIN, 0}};
        int ready = poll(fds, 2, 60000);
        if (ready < 0) return perror("poll"), 1;
        if (ready == 0 && ++ticks > 5) return fprintf(stderr, "no progress\n"), 1;
        if (fds[0].revents) {
            te_status status = te_queue_next_many(queue, BATCH, 0, results, &count);
            if (status != TE_TIMEOUT) check(status, "fetching");
            for (size_t i = 0; i < count; i++) {
                done += finished(results[i]);
                te_result_free(results[i]);
            }
        }
        if (fds[1].revents && read(wake[0], &reply, sizeof reply) == (ssize_t)sizeof reply) {
            check(te_tool_reply_ok(reply, TE_STR("1.0")), "answering");
            te_tool_reply_free(reply);
        }
    }
    te_queue_free(queue);
    te_executor_free(executor);
    printf("%d trajectories, mean reward %.2f\n", done, total_reward / done);
    return 0;
}
